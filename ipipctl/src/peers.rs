//! `ipipctl peers`: each peer with its path, prefixes and traffic.

use crate::{
    agent_paths::AgentPath,
    names::{self, Names},
    output::{self, Format},
    rows::{self, MapRow, PeerInfoRow, PeerRow, PeerTrafficRow, RouteRow},
};
use anyhow::{Context, Result};
use ipip_abi::{
    Candidate, Peer, PeerInfo, PeerTraffic, Route, RouteKey,
    probe::{ProbeState, candidate_index, candidate_indexes},
};
use ipip_datapath::Maps;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

/// One peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerView {
    node: Option<String>,
    state: String,
    path: Option<&'static str>,
    encapsulation: Option<String>,
    underlay: Option<Ipv4Addr>,
    source: Option<Ipv4Addr>,
    uplink: Option<String>,
    next_hop_mac: Option<String>,
    mtu: Option<u16>,
    /// Of the last probe that was answered on this path.
    round_trip_ms: Option<f64>,
    /// Seconds since that answer.
    last_answer_s: Option<f64>,
    /// Why candidates are not used that are better by themselves; nothing if no agent runs.
    better_paths: Vec<String>,
    prefixes: Vec<String>,
    tx_packets: u64,
    tx_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    why: String,
}

/// What probes have shown of the path in use.
#[derive(Clone, Copy, Debug)]
struct Shown {
    name: &'static str,
    state: ProbeState,
}

/// All peers, with what their agent says of the paths. Index 0 of the maps, this node, is not shown.
pub fn peers(
    maps: &Maps,
    agent: &HashMap<String, Vec<AgentPath>>,
    format: Format,
) -> Result<String> {
    let info = PeerInfoRow::read(maps)?;
    let names = Names::new(&info, names::interfaces());
    let paths = PeerRow::read(maps)?;
    let mut shown = HashMap::new();
    for (peer, path) in &paths {
        shown.extend(shown_of(maps, *peer, path)?.map(|it| (*peer, it)));
    }
    let mut views = views(
        &info,
        &paths,
        &RouteRow::read(maps)?,
        &PeerTrafficRow::read(maps)?,
        &names,
    );
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    let others = info.iter().filter(|(peer, _)| *peer != 0);
    for (view, (peer, info)) in views.iter_mut().zip(others) {
        view.add_probes(shown.get(peer), now);
        let paths = agent.get(info.name()).into_iter().flatten();
        let better = paths.filter(|it| it.is_better);
        view.better_paths = better
            .map(|it| format!("{}: {}", it.candidate, it.why))
            .collect();
    }
    output::render(&views, format)
}

/// The candidate that is the path in use, and its probes.
fn shown_of(maps: &Maps, peer: u16, path: &Peer) -> Result<Option<Shown>> {
    for index in candidate_indexes(peer) {
        let candidate = maps.candidates.get(&index, 0);
        let candidate = candidate.context("cannot read map CANDIDATES")?;
        let is_same = (candidate.underlay, candidate.encapsulation)
            == (path.underlay, path.encapsulation)
            && candidate.ifindex != 0;
        let number = u8::try_from(index - candidate_index(peer, 0))?;
        if let (true, Ok(number)) = (is_same, Candidate::try_from(number)) {
            let state = maps.probe_states.get(&index, 0);
            return Ok(Some(Shown {
                name: number.name(),
                state: state.context("cannot read map PROBE_STATES")?,
            }));
        }
    }
    Ok(None)
}

impl PeerView {
    fn add_probes(&mut self, shown: Option<&Shown>, now: Duration) {
        self.path = shown.map(|it| it.name);
        let answered = shown.filter(|it| it.state.received_at != 0);
        let Some(Shown { state, .. }) = answered else {
            return;
        };
        let round_trip = Duration::from_nanos(state.received_at.saturating_sub(state.answered));
        let since = now.saturating_sub(Duration::from_nanos(state.received_at));
        self.round_trip_ms = Some((round_trip.as_secs_f64() * 1e6).round() / 1e3);
        self.last_answer_s = Some((since.as_secs_f64() * 10.0).round() / 10.0);
    }
}

fn views(
    info: &[(u16, PeerInfo)],
    paths: &[(u16, Peer)],
    routes: &[(RouteKey, Route)],
    traffic: &[(u16, PeerTraffic)],
    names: &Names,
) -> Vec<PeerView> {
    let paths: HashMap<u16, &(u16, Peer)> = paths.iter().map(|entry| (entry.0, entry)).collect();
    let traffic: HashMap<u16, PeerTraffic> = traffic.iter().copied().collect();
    let others = info.iter().filter(|(peer, _)| *peer != 0);
    others
        .map(|entry| {
            let peer = entry.0;
            let info = PeerInfoRow::new(entry, names);
            let path = paths.get(&peer).map(|entry| PeerRow::new(entry, names));
            let traffic = traffic.get(&peer).copied().unwrap_or_default();
            let own = routes.iter().filter(|(_, route)| route.peer == peer);
            let prefixes = own.map(|(key, _)| rows::prefix(key)).collect();
            PeerView {
                node: info.node,
                state: info.state,
                path: None,
                encapsulation: path.as_ref().map(|p| p.encapsulation.clone()),
                underlay: path.as_ref().map(|p| p.underlay),
                source: path.as_ref().map(|p| p.source),
                uplink: path.as_ref().and_then(uplink),
                mtu: path.as_ref().map(|p| p.mtu),
                next_hop_mac: path.and_then(|p| p.next_hop_mac),
                round_trip_ms: None,
                last_answer_s: None,
                better_paths: Vec::new(),
                prefixes,
                tx_packets: traffic.tx_packets,
                tx_bytes: traffic.bytes.sent(),
                rx_packets: traffic.rx_packets,
                rx_bytes: traffic.bytes.received(),
                why: info.why,
            }
        })
        .collect()
}

/// The name of the uplink, or its index if it is not an interface of this network namespace.
fn uplink(path: &PeerRow) -> Option<String> {
    let index = (path.ifindex != 0).then(|| format!("if{}", path.ifindex));
    path.uplink.clone().or(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use ipip_abi::PeerBytes;

    fn shown() -> Vec<PeerView> {
        let traffic = PeerTraffic {
            tx_packets: 5,
            rx_packets: 4,
            bytes: PeerBytes {
                tx: [400, 100],
                rx: [150, 250],
            },
        };
        views(
            &testdata::peer_info(),
            &testdata::peers(),
            &testdata::routes(),
            &[(1, traffic)],
            &testdata::names(),
        )
    }

    #[test]
    fn a_reachable_peer_is_shown_with_path_prefixes_and_traffic() {
        let views = shown();
        let peer = &views[0];
        assert_eq!(peer.node.as_deref(), Some("b1"));
        assert_eq!(peer.state, "Reachable");
        assert_eq!(peer.encapsulation.as_deref(), Some("ipip"));
        assert_eq!(peer.uplink.as_deref(), Some("eth0"));
        assert_eq!(peer.prefixes, ["10.0.0.21/32", "10.42.2.0/24"]);
        assert_eq!((peer.tx_packets, peer.rx_packets), (5, 4));
        assert_eq!((peer.tx_bytes, peer.rx_bytes), (500, 400));
    }

    #[test]
    fn a_peer_without_a_path_is_shown_with_the_reason() {
        let views = shown();
        let peer = &views[1];
        assert_eq!(peer.node.as_deref(), Some("c1"));
        assert_eq!((&peer.underlay, &peer.mtu), (&None, &None));
        assert!(peer.why.contains("publicEndpoint"), "{}", peer.why);
        assert!(peer.why.contains("same InternalIP"), "{}", peer.why);
    }

    #[test]
    fn the_last_answer_on_the_path_gives_round_trip_and_age() {
        let mut view = shown().remove(0);
        view.add_probes(None, Duration::ZERO);
        assert_eq!((view.path, view.round_trip_ms), (None, None));
        let mut probes = Shown {
            name: "public-ipip",
            state: ProbeState::default(),
        };
        view.add_probes(Some(&probes), Duration::from_secs(9));
        assert_eq!((view.path, view.last_answer_s), (Some("public-ipip"), None));
        probes.state.answered = 5_000_000_000;
        probes.state.received_at = 5_012_345_678;
        view.add_probes(Some(&probes), Duration::from_secs(9));
        assert_eq!(view.round_trip_ms, Some(12.346));
        assert_eq!(view.last_answer_s, Some(4.0));
    }

    #[test]
    fn this_node_is_not_shown_as_a_peer() {
        assert!(
            shown()
                .iter()
                .all(|peer| peer.node.as_deref() != Some("a1"))
        );
    }
}
