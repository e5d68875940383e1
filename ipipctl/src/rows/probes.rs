//! The maps of probes.

use super::{MapRow, PeerRow, reading, used};
use crate::names::{self, Names};
use anyhow::{Context, Result};
use ipip_abi::{
    Addr, Candidate, Peer,
    maps::{self, MapSpec},
    probe::{ProbeMessage, ProbeSecret, ProbeState, candidate_indexes},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// A path that could be used to a peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateRow {
    candidate: String,
    #[serde(flatten)]
    path: PeerRow,
}

/// Whose probes are authenticated. The keys themselves are never shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeSecretRow {
    peer: u16,
    node: Option<String>,
    probe_address: Ipv4Addr,
    own_identity: String,
    peer_identity: String,
}

/// The last probes and answers of a candidate. Times are of `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeStateRow {
    peer: u16,
    node: Option<String>,
    candidate: String,
    peer_source: Option<Ipv4Addr>,
    asked_ns: u64,
    answered_ns: u64,
    received_ns: u64,
    len: u16,
    accepted: bool,
}

/// The used elements of an array that is indexed by candidate.
fn of_candidates<V: Default + PartialEq>(
    read: impl Fn(u32) -> Result<V>,
) -> Result<Vec<((u16, u8), V)>> {
    let mut found = Vec::new();
    for peer in 0..u16::try_from(maps::MAX_PEERS)? {
        for (candidate, index) in (0..).zip(candidate_indexes(peer)) {
            let value = read(index)?;
            if value != V::default() {
                found.push(((peer, candidate), value));
            }
        }
    }
    Ok(found)
}

fn candidate_name(candidate: u8) -> String {
    names::code(Candidate::try_from(candidate), Candidate::name)
}

fn hex(bytes: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(bytes))
}

impl MapRow for CandidateRow {
    const MAP: &'static MapSpec = &maps::CANDIDATES;
    type Entry = ((u16, u8), Peer);

    fn read(maps: &Maps) -> Result<Vec<Self::Entry>> {
        of_candidates(|index| {
            let path = maps.candidates.get(&index, 0);
            path.with_context(|| reading(Self::MAP))
        })
    }

    fn new(((peer, candidate), path): &Self::Entry, names: &Names) -> Self {
        Self {
            candidate: candidate_name(*candidate),
            path: PeerRow::new(&(*peer, *path), names),
        }
    }
}

impl MapRow for ProbeSecretRow {
    const MAP: &'static MapSpec = &maps::PROBE_SECRETS;
    type Entry = (u16, ProbeSecret);

    fn read(maps: &Maps) -> Result<Vec<Self::Entry>> {
        used(Self::MAP, |peer| {
            let secret = maps.probe_secrets.get(&u32::from(peer), 0);
            let secret = secret.with_context(|| reading(Self::MAP))?;
            Ok(secret.is_set().then_some(secret))
        })
    }

    fn new((peer, secret): &Self::Entry, names: &Names) -> Self {
        Self {
            peer: *peer,
            node: names.peer(*peer),
            probe_address: secret.address.into(),
            own_identity: hex(secret.own),
            peer_identity: hex(secret.peer),
        }
    }
}

impl MapRow for ProbeStateRow {
    const MAP: &'static MapSpec = &maps::PROBE_STATES;
    type Entry = ((u16, u8), ProbeState);

    fn read(maps: &Maps) -> Result<Vec<Self::Entry>> {
        of_candidates(|index| {
            let state = maps.probe_states.get(&index, 0);
            state.with_context(|| reading(Self::MAP))
        })
    }

    fn new(((peer, candidate), state): &Self::Entry, names: &Names) -> Self {
        let source = (state.peer_source != Addr::ZERO).then(|| state.peer_source.into());
        Self {
            peer: *peer,
            node: names.peer(*peer),
            candidate: candidate_name(*candidate),
            peer_source: source,
            asked_ns: state.asked,
            answered_ns: state.answered,
            received_ns: state.received_at,
            len: state.len,
            accepted: state.flags & ProbeMessage::ACCEPTED != 0,
        }
    }
}
