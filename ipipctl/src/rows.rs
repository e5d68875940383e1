//! The entries of the maps as `ipipctl dump` shows them: each number with its name.

use crate::names::{self, Names};
use ipip_abi::{
    Addr, Config, Counter, DropReason, Encapsulation, Flow, FlowKey, NodeAddr, Peer, PeerInfo,
    PeerState, PeerTraffic, Pod, Route, RouteKey, Tally,
};
use serde::Serialize;
use std::net::Ipv4Addr;

/// One struct for each kind of row; its fields are the JSON's names and the table's columns.
macro_rules! rows {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $(pub $field: $ty,)* }
    )*};
}

rows! {
    /// The node's own settings.
    ConfigRow {
        ipip0_ifindex: u32,
        ipip0_interface: Option<String>,
        ipip0_mac: String,
        udp_port: u16,
        foreign_ipip: &'static str,
        events_per_second: u32,
        pod_mtu: u32,
        pod_gso_max: u32,
    }

    /// A pod of this node.
    PodRow {
        address: Ipv4Addr,
        ifindex: u32,
        interface: Option<String>,
        mac: String,
        host_mac: String,
        limited: bool,
    }

    /// A prefix and whose it is.
    RouteRow {
        prefix: String,
        kind: String,
        peer: u16,
        node: Option<String>,
    }

    /// The path to a peer.
    PeerRow {
        peer: u16,
        node: Option<String>,
        encapsulation: String,
        underlay: Ipv4Addr,
        source: Ipv4Addr,
        ifindex: u32,
        uplink: Option<String>,
        uplink_mac: String,
        next_hop_mac: Option<String>,
        mtu: u16,
    }

    /// Who a peer is.
    PeerInfoRow {
        peer: u16,
        node: Option<String>,
        state: String,
        why: String,
    }

    /// An address by which a node is known.
    NodeAddrRow {
        address: Ipv4Addr,
        peer: u16,
        node: Option<String>,
        roles: Vec<&'static str>,
    }

    /// A flow in the direction in which it came out of the host stack.
    FlowRow {
        protocol: String,
        source: Ipv4Addr,
        source_port: u16,
        destination: Ipv4Addr,
        destination_port: u16,
    }

    /// A counter.
    CounterRow {
        counter: &'static str,
        code: u8,
        packets: u64,
        bytes: u64,
        meaning: &'static str,
    }

    /// A drop reason.
    DropRow {
        reason: &'static str,
        code: u8,
        packets: u64,
        bytes: u64,
        meaning: &'static str,
    }

    /// What went to and came from a peer.
    PeerTrafficRow {
        peer: u16,
        node: Option<String>,
        tx_packets: u64,
        tx_bytes: u64,
        rx_packets: u64,
        rx_bytes: u64,
    }
}

impl ConfigRow {
    pub fn new(config: &Config, names: &Names) -> Self {
        Self {
            ipip0_ifindex: config.ipip0_ifindex,
            ipip0_interface: names.interface(config.ipip0_ifindex),
            ipip0_mac: config.ipip0_mac.to_string(),
            udp_port: u16::from_be_bytes(config.udp_port),
            foreign_ipip: match config.flags & Config::FOREIGN_IPIP_PASS {
                0 => "drop",
                _ => "pass",
            },
            events_per_second: config.events_per_second,
            pod_mtu: config.pod_mtu,
            pod_gso_max: config.pod_gso_max,
        }
    }
}

impl PodRow {
    pub fn new((address, pod): &(Addr, Pod), names: &Names) -> Self {
        Self {
            address: (*address).into(),
            ifindex: pod.ifindex,
            interface: names.interface(pod.ifindex),
            mac: pod.mac.to_string(),
            host_mac: pod.host_mac.to_string(),
            limited: pod.takes_host_stack(),
        }
    }
}

impl RouteRow {
    pub fn new((key, route): &(RouteKey, Route), names: &Names) -> Self {
        Self {
            prefix: prefix(key),
            kind: match route.kind {
                Route::PODS => "pods".into(),
                Route::NODE => "node".into(),
                other => format!("unknown({other})"),
            },
            peer: route.peer,
            node: names.peer(route.peer),
        }
    }
}

/// A prefix as people write it.
pub fn prefix(key: &RouteKey) -> String {
    format!("{}/{}", key.prefix, key.prefix_len)
}

impl PeerRow {
    pub fn new((peer, path): &(u16, Peer), names: &Names) -> Self {
        let encapsulation = Encapsulation::try_from(path.encapsulation);
        Self {
            peer: *peer,
            node: names.peer(*peer),
            encapsulation: names::code(encapsulation, Encapsulation::name),
            underlay: path.underlay.into(),
            source: path.source.into(),
            ifindex: path.ifindex,
            uplink: names.interface(path.ifindex),
            uplink_mac: path.uplink_mac.to_string(),
            next_hop_mac: (path.flags & Peer::MAC_KNOWN != 0)
                .then(|| path.next_hop_mac.to_string()),
            mtu: path.mtu,
        }
    }
}

impl PeerInfoRow {
    pub fn new((peer, info): &(u16, PeerInfo), names: &Names) -> Self {
        let state = PeerState::try_from(info.state);
        let mut why = vec![names::code(state, PeerState::text)];
        for (note, text) in [
            (
                PeerInfo::INTERNAL_IP_SHARED,
                "another node has the same InternalIP",
            ),
            (
                PeerInfo::INTERNAL_IP_IS_LOCAL,
                "its InternalIP is also an address or gateway of this node",
            ),
            (
                PeerInfo::POD_CIDR_HOLDS_HOST,
                "a pod CIDR of it holds an address or gateway of this node",
            ),
        ] {
            if info.notes & note != 0 {
                why.push(text.into());
            }
        }
        Self {
            peer: *peer,
            node: names.peer(*peer),
            state: names::code(state, PeerState::name),
            why: why.join("; "),
        }
    }
}

impl NodeAddrRow {
    pub fn new((address, entry): &(Addr, NodeAddr), names: &Names) -> Self {
        let roles = [(NodeAddr::OWN, "own"), (NodeAddr::UNDERLAY, "underlay")];
        Self {
            address: (*address).into(),
            peer: entry.peer,
            node: names.peer(entry.peer),
            roles: roles
                .into_iter()
                .filter(|(flag, _)| entry.flags & flag != 0)
                .map(|(_, role)| role)
                .collect(),
        }
    }
}

impl FlowRow {
    pub fn new((key, flow): &(FlowKey, Flow)) -> Self {
        let low = (key.low, key.low_port);
        let high = (key.high, key.high_port);
        let (from, to) = match flow.from_low {
            0 => (high, low),
            _ => (low, high),
        };
        Self {
            protocol: names::protocol(key.protocol),
            source: from.0.into(),
            source_port: u16::from_be_bytes(from.1),
            destination: to.0.into(),
            destination_port: u16::from_be_bytes(to.1),
        }
    }
}

impl CounterRow {
    pub fn new((counter, tally): &(Counter, Tally)) -> Self {
        Self {
            counter: counter.name(),
            code: *counter as u8,
            packets: tally.packets,
            bytes: tally.bytes,
            meaning: counter.text(),
        }
    }
}

impl DropRow {
    pub fn new((reason, tally): &(DropReason, Tally)) -> Self {
        Self {
            reason: reason.name(),
            code: *reason as u8,
            packets: tally.packets,
            bytes: tally.bytes,
            meaning: reason.text(),
        }
    }
}

impl PeerTrafficRow {
    pub fn new((peer, traffic): &(u16, PeerTraffic), names: &Names) -> Self {
        Self {
            peer: *peer,
            node: names.peer(*peer),
            tx_packets: traffic.tx_packets,
            tx_bytes: traffic.tx_bytes,
            rx_packets: traffic.rx_packets,
            rx_bytes: traffic.rx_bytes,
        }
    }
}
