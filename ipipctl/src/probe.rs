//! `ipipctl probe`: asks peers on each candidate, and shows which of them answer.

use crate::{
    names::{self, Names},
    output::{self, Format},
    rows::{CandidateRow, MapRow, PeerInfoRow, PeerRow},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use ipip_abi::{Candidate, Peer, PeerInfo};
use ipip_datapath::{
    Maps, ProbeAnswer, ProbeError, ProbeTarget, Prober, SHORTEST_PROBE, SentProbe, chain,
};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

/// How often answers are looked for.
const POLL: Duration = Duration::from_millis(1);
/// Between two probes of one candidate. A peer answers one in 20 ms.
const INTERVAL: Duration = Duration::from_millis(50);

/// Which peers are asked, and how often.
#[derive(Args)]
pub struct Options {
    /// Name of the peer's node; all peers if it is left out
    peer: Option<String>,
    /// Probes of each candidate
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
    /// Milliseconds to wait for an answer
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout: u64,
}

/// Candidates that are asked at once, so that a large cluster gets no burst.
const BATCH: usize = 256;

/// What probes have shown of one candidate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProbeRow {
    node: Option<String>,
    candidate: String,
    underlay: Ipv4Addr,
    uplink: Option<String>,
    in_use: bool,
    sent: u16,
    answered: u16,
    /// The shortest one.
    round_trip_ms: Option<f64>,
    /// Whether the peer accepts data from the address that it saw.
    accepted: Option<bool>,
    #[serde(skip)]
    peer: u16,
    why: Option<String>,
}

/// One candidate that is asked.
struct Asked {
    candidate: Candidate,
    row: ProbeRow,
}

/// Sends the probes, and returns the output and the peers whose path in use gives no answer.
pub fn probe(maps: &Maps, options: &Options, format: Format) -> Result<(String, Vec<String>)> {
    let info = PeerInfoRow::read(maps)?;
    let names = Names::new(&info, names::interfaces());
    let wanted = wanted(&info, options.peer.as_deref())?;
    let prober = Prober::open(maps)?;
    let mut asked = Vec::new();
    for ((peer, candidate), path) in CandidateRow::read(maps)? {
        if let Ok(candidate) = Candidate::try_from(candidate)
            && wanted.contains(&peer)
        {
            let in_use = is_in_use(maps, peer, &path)?;
            let shown = PeerRow::new(&(peer, path), &names);
            let row = row(shown, peer, candidate, in_use, &names);
            asked.push(Asked { candidate, row });
        }
    }
    let timeout = Duration::from_millis(options.timeout);
    for batch in asked.chunks_mut(BATCH) {
        for round in 0..options.count {
            if round > 0 {
                thread::sleep(INTERVAL);
            }
            ask(&prober, maps, batch, timeout)?;
        }
    }
    let rows: Vec<ProbeRow> = asked.into_iter().map(|it| it.row).collect();
    let failed = failed(&wanted, &rows);
    let failed = failed.into_iter().filter_map(|peer| names.peer(peer));
    Ok((output::render(&rows, format)?, failed.collect()))
}

/// The peers whose path in use has not answered, or does not accept data. So has one without a path.
fn failed(wanted: &BTreeSet<u16>, rows: &[ProbeRow]) -> Vec<u16> {
    let works = |it: &&ProbeRow| it.in_use && it.accepted == Some(true);
    let working: BTreeSet<u16> = rows.iter().filter(works).map(|it| it.peer).collect();
    wanted.difference(&working).copied().collect()
}

/// The indexes of the peers to ask.
fn wanted(info: &[(u16, PeerInfo)], name: Option<&str>) -> Result<BTreeSet<u16>> {
    let peers = info.iter().filter(|(peer, _)| *peer != 0);
    let Some(name) = name else {
        return Ok(peers.map(|(peer, _)| *peer).collect());
    };
    let found = peers.clone().find(|(_, info)| info.name() == name);
    let Some((peer, _)) = found else {
        let all: Vec<&str> = peers.map(|(_, info)| info.name()).collect();
        bail!("no peer is called {name}; the peers are {}", all.join(", "));
    };
    Ok(BTreeSet::from([*peer]))
}

fn is_in_use(maps: &Maps, peer: u16, candidate: &Peer) -> Result<bool> {
    let path = maps.peers.get(&u32::from(peer), 0);
    let path = path.context("cannot read map PEERS")?;
    Ok((path.underlay, path.encapsulation) == (candidate.underlay, candidate.encapsulation))
}

fn row(shown: PeerRow, peer: u16, candidate: Candidate, in_use: bool, names: &Names) -> ProbeRow {
    ProbeRow {
        node: names.peer(peer),
        candidate: candidate.name().into(),
        underlay: shown.underlay,
        uplink: shown.uplink,
        in_use,
        sent: 0,
        answered: 0,
        round_trip_ms: None,
        accepted: None,
        peer,
        why: None,
    }
}

/// Sends one probe on each candidate, and waits for the answers.
fn ask(prober: &Prober, maps: &Maps, asked: &mut [Asked], timeout: Duration) -> Result<()> {
    let mut open: Vec<(usize, SentProbe)> = Vec::new();
    for (index, it) in asked.iter_mut().enumerate() {
        let (peer, candidate) = (it.row.peer, it.candidate);
        let target = ProbeTarget::read(maps, peer, candidate).map_err(ProbeError::from);
        let send = |target| prober.send(peer, candidate, &target, SHORTEST_PROBE as u16);
        match target.and_then(send) {
            Ok(sent) => {
                it.row.sent += 1;
                open.push((index, sent));
            }
            Err(error) => it.row.why = Some(chain(&error)),
        }
    }
    let deadline = Instant::now() + timeout;
    while !open.is_empty() && Instant::now() < deadline {
        let mut waiting = Vec::new();
        for (index, sent) in open {
            match sent.answer(maps)? {
                Some(answer) => note(&mut asked[index].row, answer),
                None => waiting.push((index, sent)),
            }
        }
        open = waiting;
        thread::sleep(POLL);
    }
    Ok(())
}

fn note(row: &mut ProbeRow, answer: ProbeAnswer) {
    let millis = (answer.round_trip.as_secs_f64() * 1e6).round() / 1e3;
    row.answered += 1;
    row.round_trip_ms = Some(row.round_trip_ms.map_or(millis, |it| it.min(millis)));
    row.accepted = Some(answer.is_accepted);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;

    #[test]
    fn a_peer_is_found_by_its_name_and_an_unknown_name_is_refused_with_all_names() {
        let info = testdata::peer_info();
        assert_eq!(wanted(&info, None).unwrap(), BTreeSet::from([1, 2]));
        assert_eq!(wanted(&info, Some("c1")).unwrap(), BTreeSet::from([2]));
        for name in ["a1", "nobody"] {
            let error = wanted(&info, Some(name)).unwrap_err().to_string();
            assert!(error.ends_with("the peers are b1, c1"), "{error}");
        }
    }

    #[test]
    fn the_shortest_round_trip_is_shown() {
        let names = testdata::names();
        let shown = PeerRow::new(&testdata::peers()[0], &names);
        let mut row = row(shown, 1, Candidate::PublicUdp, true, &names);
        for (micros, is_accepted) in [(1500, false), (1234, true), (9000, true)] {
            let answer = ProbeAnswer {
                round_trip: Duration::from_micros(micros),
                len: 84,
                is_accepted,
            };
            note(&mut row, answer);
        }
        let others = BTreeSet::from([1, 2]);
        assert_eq!(failed(&others, std::slice::from_ref(&row)), [2]);
        row.in_use = false;
        assert_eq!(failed(&others, std::slice::from_ref(&row)), [1, 2]);
        row.in_use = true;
        let rows = [row];
        let table = output::table(&rows).unwrap();
        let expected = "\
NODE  CANDIDATE   UNDERLAY      UPLINK  IN USE  SENT  ANSWERED  ROUND TRIP MS  ACCEPTED  WHY
b1    public-udp  203.0.113.21  eth0    yes        0         3          1.234  yes       -
";
        assert_eq!(table, expected);
    }
}
