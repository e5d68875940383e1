//! `ipipctl peers`: each peer with its path, prefixes and traffic.

use crate::{
    names::{self, Names},
    output::{self, Format},
    rows::{self, MapRow, PeerInfoRow, PeerRow, PeerTrafficRow, RouteRow},
};
use anyhow::Result;
use ipip_abi::{Peer, PeerInfo, PeerTraffic, Route, RouteKey};
use ipip_datapath::Maps;
use serde::Serialize;
use std::{collections::HashMap, net::Ipv4Addr};

/// One peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerView {
    node: Option<String>,
    state: String,
    encapsulation: Option<String>,
    underlay: Option<Ipv4Addr>,
    source: Option<Ipv4Addr>,
    uplink: Option<String>,
    next_hop_mac: Option<String>,
    mtu: Option<u16>,
    prefixes: Vec<String>,
    tx_packets: u64,
    tx_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    why: String,
}

/// All peers. Index 0 of the maps, this node, is not shown.
pub fn peers(maps: &Maps, format: Format) -> Result<String> {
    let info = PeerInfoRow::read(maps)?;
    let names = Names::new(&info, names::interfaces());
    let views = views(
        &info,
        &PeerRow::read(maps)?,
        &RouteRow::read(maps)?,
        &PeerTrafficRow::read(maps)?,
        &names,
    );
    output::render(&views, format)
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
                encapsulation: path.as_ref().map(|p| p.encapsulation.clone()),
                underlay: path.as_ref().map(|p| p.underlay),
                source: path.as_ref().map(|p| p.source),
                uplink: path.as_ref().and_then(uplink),
                mtu: path.as_ref().map(|p| p.mtu),
                next_hop_mac: path.and_then(|p| p.next_hop_mac),
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
    fn this_node_is_not_shown_as_a_peer() {
        assert!(
            shown()
                .iter()
                .all(|peer| peer.node.as_deref() != Some("a1"))
        );
    }
}
