//! The maps: name, kind and size in one table. `ebpf` declares the maps from it, and user space opens them with it.

use crate::{
    Addr, CACHE_LEN, Cached, Config, Counter, DropReason, EventBudget, Flow, FlowKey, MtuHint,
    NodeAddr, Peer, PeerInfo, PeerTraffic, Pod, Route, RouteKey, Tally,
    handover::{PodKey, PodRecord},
    probe::{CANDIDATES_PER_PEER, ProbeSecret, ProbeState},
};

/// The type of a map (`BPF_MAP_TYPE_*`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// One value per index.
    Array,
    /// One value per index and CPU.
    PerCpuArray,
    /// All entries are allocated at load.
    Hash,
    /// A hash map whose least recently used entry makes room for a new one.
    LruHash,
    /// Longest prefix match; memory is allocated as entries are added.
    LpmTrie,
    /// Bytes from the kernel to one reader.
    RingBuf,
}

/// One map.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MapSpec {
    /// Name in the object and under the pins.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Bytes of a key (0 for a ring buffer).
    pub key_size: u32,
    /// Bytes of a value (0 for a ring buffer).
    pub value_size: u32,
    /// Entries, or the bytes of a ring buffer.
    pub max_entries: u32,
    /// Contents, in one line.
    pub holds: &'static str,
}

/// Peers of a node, with index 0 for the node itself.
pub const MAX_PEERS: u32 = 5_120;
/// Candidates of all peers.
pub const MAX_CANDIDATES: u32 = MAX_PEERS * CANDIDATES_PER_PEER;
/// Prefixes: four per peer (pod CIDRs and InternalIPs).
pub const MAX_ROUTES: u32 = 4 * MAX_PEERS;
/// Addresses of nodes: InternalIPs and public endpoints.
pub const MAX_NODE_ADDRS: u32 = if cfg!(feature = "next-abi") { 5 } else { 4 } * MAX_PEERS;
/// Pods of a node.
pub const MAX_PODS: u32 = 50_000;
/// Recorded flows that came out of the host stack.
pub const MAX_FLOWS: u32 = 131_072;
/// TCP connections among them that both ends use.
pub const MAX_CONNECTIONS: u32 = 131_072;
/// Entries of `FLOW_PAIRS`: a power of two.
pub const MAX_FLOW_PAIRS: u32 = 262_144;
/// Entries of an array that is indexed by a code. It leaves room, so that a new code changes no map.
pub const MAX_CODES: u32 = 64;
const _: () = assert!(DropReason::ARRAY_LEN <= MAX_CODES && Counter::ARRAY_LEN <= MAX_CODES);
/// The kernel's jiffies per unit of `NEXT_HOPS_UNTIL`, as a power of two: one second to ten, by the kernel's `HZ`.
pub const JIFFIES_UNIT_BITS: u32 = 10;
/// Bytes of the ring buffer for drop events (a power of two and of pages).
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Bytes of the ring buffer for answers, likewise: 6,500 receipts, those of some seconds in the largest cluster.
pub const ANSWERS_BYTES: u32 = 256 * 1024;

macro_rules! specs {
    ($($(#[$meta:meta])* $name:ident: $kind:ident<$key:ty, $value:ty>[$max:expr], $holds:literal;)*) => {
        $(
            $(#[$meta])*
            #[doc = $holds]
            pub const $name: MapSpec = MapSpec {
                name: stringify!($name),
                kind: Kind::$kind,
                key_size: size_of::<$key>() as u32,
                value_size: size_of::<$value>() as u32,
                max_entries: $max,
                holds: $holds,
            };
        )*
        /// Every map, in the order of `ipipctl dump`.
        pub const ALL: &[MapSpec] = &[$($(#[$meta])* $name),*];
    };
}

specs! {
    CONFIG: Array<u32, Config>[1], "settings of this node";
    PODS: Hash<Addr, Pod>[MAX_PODS], "local pod address -> veth, MACs";
    POD_CACHE: Array<u32, Cached<Pod>>[CACHE_LEN], "direct-mapped cache of PODS";
    ROUTES: LpmTrie<RouteKey, Route>[MAX_ROUTES], "prefix -> peer";
    ROUTE_CACHE: Array<u32, Cached<Route>>[CACHE_LEN], "direct-mapped cache of ROUTES: /24 that one route decides -> peer";
    PEERS: Array<u32, Peer>[MAX_PEERS], "peer -> path";
    PEER_INFO: Array<u32, PeerInfo>[MAX_PEERS], "peer -> name and state, for display";
    CANDIDATES: Array<u32, Peer>[MAX_CANDIDATES], "candidate of a peer -> path that could be used";
    PROBE_SECRETS: Array<u32, ProbeSecret>[MAX_PEERS], "peer -> what authenticates its probes";
    PROBE_STATES: Array<u32, ProbeState>[MAX_CANDIDATES], "candidate of a peer -> the last probes and answers";
    MTU_HINTS: Array<u32, MtuHint>[MAX_PEERS], "peer -> the last ICMP error about the MTU of its path";
    NODE_ADDRS: Hash<Addr, NodeAddr>[MAX_NODE_ADDRS], "address of a node -> peer, roles";
    NODE_CACHE: Array<u32, Cached<NodeAddr>>[CACHE_LEN], "direct-mapped cache of NODE_ADDRS";
    FLOWS: LruHash<FlowKey, Flow>[MAX_FLOWS], "flows that came out of the host stack";
    CONNECTIONS: LruHash<FlowKey, Flow>[MAX_CONNECTIONS], "open TCP connections of FLOWS, which other flows cannot displace";
    FLOW_PAIRS: Array<u32, u32>[MAX_FLOW_PAIRS], "pairs of addresses that may have an entry in FLOWS";
    COUNTERS: PerCpuArray<u32, Tally>[MAX_CODES], "packets and bytes by counter";
    DROPS: PerCpuArray<u32, Tally>[MAX_CODES], "packets and bytes by drop reason";
    PEER_TRAFFIC: PerCpuArray<u32, PeerTraffic>[MAX_PEERS], "packets and bytes by peer";
    SENT: Array<u32, u32>[MAX_PEERS], "peer -> the readers that have not seen yet that packets were sent to it";
    ANSWERS: RingBuf<(), ()>[ANSWERS_BYTES], "answers to probes, for the agent";
    EVENTS: RingBuf<(), ()>[EVENTS_BYTES], "sampled drops";
    #[cfg(not(feature = "next-abi"))]
    EVENT_BUDGET: PerCpuArray<u32, EventBudget>[1], "rate limit of the drop events";
    NEXT_HOPS_UNTIL: Array<u32, u32>[1], "how long the MACs in PEERS may be used, in units of 1,024 jiffies since boot";
    #[cfg(feature = "next-abi")]
    NEXT_BUDGET: PerCpuArray<u32, EventBudget>[2], "in place of EVENT_BUDGET: one map less, and a new one";
    POD_RECORDS: Hash<PodKey, PodRecord>[MAX_PODS], "local pod address -> what every version must know of the pod";
}

#[cfg(feature = "next-abi")]
pub use NEXT_BUDGET as EVENT_BUDGET;

/// The maps that all versions share ([`handover`](crate::handover)). Their names, kinds, keys and values never change. The
/// number of entries may: a version takes the map that it finds. Only `FLOW_PAIRS` always has as many, because its
/// indexes are computed from this number, and its [index](crate::flow_pair_index) and epoch never change either.
pub const SHARED: [&MapSpec; 4] = [&FLOWS, &CONNECTIONS, &FLOW_PAIRS, &POD_RECORDS];

impl MapSpec {
    /// Whether all versions share the map.
    pub fn is_shared(&self) -> bool {
        SHARED.iter().any(|shared| shared.name == self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    #[cfg(not(feature = "next-abi"))]
    use crate::{DropEvent, probe::ProbeReceipt};
    #[cfg(not(feature = "next-abi"))]
    use std::{fmt::Write, string::String};
    use zerocopy::IntoBytes;

    /// The index of a pair of addresses in `FLOW_PAIRS`.
    const FLOW_PAIR: u32 = 129_349;

    /// The layout of `ABI_VERSION`. If this test fails, raise `ABI_VERSION` and record
    /// the new layout here.
    #[cfg(not(feature = "next-abi"))]
    const RECORDED: &str = "9
CONFIG Array 4 32 1
PODS Hash 4 20 50000
POD_CACHE Array 4 24 65536
ROUTES LpmTrie 8 4 20480
ROUTE_CACHE Array 4 8 65536
PEERS Array 4 32 5120
PEER_INFO Array 4 256 5120
CANDIDATES Array 4 32 40960
PROBE_SECRETS Array 4 40 5120
PROBE_STATES Array 4 40 40960
MTU_HINTS Array 4 16 5120
NODE_ADDRS Hash 4 4 20480
NODE_CACHE Array 4 8 65536
FLOWS LruHash 16 4 131072
CONNECTIONS LruHash 16 4 131072
FLOW_PAIRS Array 4 4 262144
COUNTERS PerCpuArray 4 16 64
DROPS PerCpuArray 4 16 64
PEER_TRAFFIC PerCpuArray 4 48 5120
SENT Array 4 4 5120
ANSWERS RingBuf 0 0 262144
EVENTS RingBuf 0 0 262144
EVENT_BUDGET PerCpuArray 4 16 1
NEXT_HOPS_UNTIL Array 4 4 1
POD_RECORDS Hash 20 64 50000
Config 0 4 10 12 16 20 24 28
Pod 0 4 10 16
Peer 0 4 8 12 14 15 16 22 28
FlowKey 0 4 8 10 12 13
DropEvent 0 8 12 16 20 24 26 28 30 31 32
ProbeReceipt 0 8 16 18 20 24 25
PeerTraffic 0 8 16
MtuHint 0 8
";

    /// Every version reads and writes these maps: the lines never change.
    #[test]
    fn shared_maps_have_their_frozen_layout() {
        let layout = SHARED.map(|m| (m.name, m.kind, m.key_size, m.value_size));
        let frozen = [
            ("FLOWS", Kind::LruHash, 16, 4),
            ("CONNECTIONS", Kind::LruHash, 16, 4),
            ("FLOW_PAIRS", Kind::Array, 4, 4),
            ("POD_RECORDS", Kind::Hash, 20, 64),
        ];
        assert_eq!(layout, frozen);
        assert_eq!(MAX_FLOW_PAIRS, 262_144);
        assert_eq!(
            crate::flow_pair_index(Addr([10, 42, 1, 2]), Addr([10, 42, 2, 3])),
            FLOW_PAIR
        );
        let (key, from_low) = FlowKey::canonical(
            Addr([10, 42, 2, 3]),
            [0, 80],
            Addr([10, 42, 1, 2]),
            [0x90, 1],
            6,
        );
        assert!(!from_low);
        assert_eq!(
            key.as_bytes(),
            [10, 42, 1, 2, 10, 42, 2, 3, 0x90, 1, 0, 80, 6, 4, 0, 0]
        );
    }

    #[cfg(not(feature = "next-abi"))]
    #[test]
    fn layout_is_the_recorded_one() {
        let mut layout = String::new();
        writeln!(layout, "{}", crate::ABI_VERSION).unwrap();
        for m in ALL {
            writeln!(
                layout,
                "{} {:?} {} {} {}",
                m.name, m.kind, m.key_size, m.value_size, m.max_entries
            )
            .unwrap();
        }
        macro_rules! offsets {
            ($($name:ident { $($field:ident)* })*) => {$(
                layout.push_str(stringify!($name));
                $(write!(layout, " {}", core::mem::offset_of!($name, $field)).unwrap();)*
                layout.push('\n');
            )*};
        }
        offsets! {
            Config { ipip0_ifindex ipip0_mac udp_port flags events_per_second pod_mtu pod_gso_max probe_address }
            Pod { ifindex mac host_mac flags }
            Peer { underlay source ifindex mtu encapsulation flags next_hop_mac uplink_mac header_sum }
            FlowKey { low high low_port high_port protocol family }
            DropEvent { at_ns ifindex len source destination source_port destination_port peer protocol reason program }
            ProbeReceipt { sent_at received_at peer len seen candidate flags }
            PeerTraffic { tx_packets rx_packets bytes }
            MtuHint { at_ns mtu }
        }
        assert_eq!(layout, RECORDED);
    }
}
