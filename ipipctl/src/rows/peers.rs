//! The maps that are indexed by peer.

use super::{MapRow, reading, used};
use crate::names::{self, Names};
use anyhow::{Context, Result};
use ipip_abi::{
    Encapsulation, MtuHint, Peer, PeerInfo, PeerState, PeerTraffic,
    maps::{self, MapSpec},
};
use ipip_datapath::Maps;
use serde::Serialize;
use std::net::Ipv4Addr;

/// The path to a peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRow {
    peer: u16,
    node: Option<String>,
    pub encapsulation: String,
    pub underlay: Ipv4Addr,
    pub source: Ipv4Addr,
    pub ifindex: u32,
    pub uplink: Option<String>,
    uplink_mac: String,
    pub next_hop_mac: Option<String>,
    pub mtu: u16,
    /// Whether the path goes to the peer's public endpoint.
    public: bool,
}

/// Name and state of a peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerInfoRow {
    peer: u16,
    pub node: Option<String>,
    pub state: String,
    pub why: String,
}

/// The last ICMP error about the MTU of the path to a peer. The time is of `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MtuHintRow {
    peer: u16,
    node: Option<String>,
    at_ns: u64,
    stated_mtu: u16,
}

/// The traffic of a peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerTrafficRow {
    peer: u16,
    node: Option<String>,
    tx_packets: u64,
    tx_bytes: u64,
    /// The part of these bytes that went over public paths.
    tx_public_bytes: u64,
    rx_packets: u64,
    rx_bytes: u64,
    rx_public_bytes: u64,
}

/// The notes about a peer's addresses, as sentences.
const NOTES: [(u8, &str); 7] = [
    (
        PeerInfo::INTERNAL_IP_SHARED,
        "another node has the same InternalIP and keeps it",
    ),
    (
        PeerInfo::INTERNAL_IP_IS_LOCAL,
        "an InternalIP of it stays with this node's own network (address, gateway, resolver, API server or localAddresses)",
    ),
    (
        PeerInfo::POD_CIDR_HOLDS_HOST,
        "one of its pod CIDRs contains an address of this node's own network (address, gateway, resolver, API server or localAddresses)",
    ),
    (
        PeerInfo::ENDPOINT_LEFT_OUT,
        "its publicEndpoint is invalid or belongs to an older node",
    ),
    (
        PeerInfo::INTERNAL_IP_LEFT_OUT,
        "an InternalIP of it is invalid, is not its Node's, or belongs to an older node",
    ),
    (
        PeerInfo::POD_CIDR_LEFT_OUT,
        "a pod CIDR of it is invalid, is not its Node's, or belongs to an older node",
    ),
    (
        PeerInfo::LAN_CONFLICT,
        "a machine of this network answers for its InternalIP, too",
    ),
];

impl MapRow for PeerRow {
    const MAP: &'static MapSpec = &maps::PEERS;
    type Entry = (u16, Peer);

    fn read(maps: &Maps) -> Result<Vec<(u16, Peer)>> {
        used(Self::MAP, |peer| {
            let path = maps.peers.get(&u32::from(peer), 0);
            let path = path.with_context(|| reading(Self::MAP))?;
            Ok((path != Peer::default()).then_some(path))
        })
    }

    fn new((peer, path): &(u16, Peer), names: &Names) -> Self {
        let encapsulation = Encapsulation::try_from(path.encapsulation);
        let mac_known = path.flags & Peer::MAC_KNOWN != 0;
        Self {
            peer: *peer,
            node: names.peer(*peer),
            encapsulation: names::code(encapsulation, Encapsulation::name),
            underlay: path.underlay.into(),
            source: path.source.into(),
            ifindex: path.ifindex,
            uplink: names.interface(path.ifindex),
            uplink_mac: path.uplink_mac.to_string(),
            next_hop_mac: mac_known.then(|| path.next_hop_mac.to_string()),
            mtu: path.mtu,
            public: path.is_public(),
        }
    }
}

impl MapRow for PeerInfoRow {
    const MAP: &'static MapSpec = &maps::PEER_INFO;
    type Entry = (u16, PeerInfo);

    fn read(maps: &Maps) -> Result<Vec<(u16, PeerInfo)>> {
        used(Self::MAP, |peer| {
            let info = maps.peer_info.get(&u32::from(peer), 0);
            let info = info.with_context(|| reading(Self::MAP))?;
            Ok((info.name_len > 0).then_some(info))
        })
    }

    fn new((peer, info): &(u16, PeerInfo), names: &Names) -> Self {
        let state = PeerState::try_from(info.state);
        let notes = NOTES.iter().filter(|(note, _)| info.notes & note != 0);
        let mut why = vec![names::code(state, PeerState::text)];
        why.extend(notes.map(|(_, text)| (*text).to_owned()));
        Self {
            peer: *peer,
            node: names.peer(*peer),
            state: names::code(state, PeerState::name),
            why: why.join("; "),
        }
    }
}

impl MapRow for MtuHintRow {
    const MAP: &'static MapSpec = &maps::MTU_HINTS;
    type Entry = (u16, MtuHint);

    fn read(maps: &Maps) -> Result<Vec<(u16, MtuHint)>> {
        used(Self::MAP, |peer| {
            let hint = maps.mtu_hints.get(&u32::from(peer), 0);
            let hint = hint.with_context(|| reading(Self::MAP))?;
            Ok((hint != MtuHint::default()).then_some(hint))
        })
    }

    fn new((peer, hint): &(u16, MtuHint), names: &Names) -> Self {
        Self {
            peer: *peer,
            node: names.peer(*peer),
            at_ns: hint.at_ns,
            stated_mtu: hint.mtu,
        }
    }
}

impl MapRow for PeerTrafficRow {
    const MAP: &'static MapSpec = &maps::PEER_TRAFFIC;
    type Entry = (u16, PeerTraffic);

    fn read(maps: &Maps) -> Result<Vec<(u16, PeerTraffic)>> {
        let last = u16::try_from(Self::MAP.max_entries - 1)?;
        let all = (0..).zip(maps.traffic_up_to(last)?);
        Ok(all.filter(|it| it.1 != PeerTraffic::default()).collect())
    }

    fn new((peer, traffic): &(u16, PeerTraffic), names: &Names) -> Self {
        Self {
            peer: *peer,
            node: names.peer(*peer),
            tx_packets: traffic.tx_packets,
            tx_bytes: traffic.bytes.sent(),
            tx_public_bytes: traffic.bytes.tx[1],
            rx_packets: traffic.rx_packets,
            rx_bytes: traffic.bytes.received(),
            rx_public_bytes: traffic.bytes.rx[1],
        }
    }
}
