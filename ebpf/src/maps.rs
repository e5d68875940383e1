//! The maps, declared from the table in `ipip_abi::maps` and pinned by name.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use core::hint::cold_path;
use ipip_abi::{
    Addr, Config, EventBudget, Flow, FlowKey, NodeAddr, Peer, PeerInfo, PeerTraffic, Pod, Route,
    RouteKey, Slot, Tally, maps, pair_slot,
};

#[map]
static CONFIG: Array<Config> = Array::pinned(maps::CONFIG.max_entries, 0);
#[map]
static PODS: HashMap<Addr, Pod> = HashMap::pinned(maps::PODS.max_entries, 0);
#[map]
static POD_SLOTS: Array<Slot<Pod>> = Array::pinned(maps::POD_SLOTS.max_entries, 0);
#[map]
static ROUTES: LpmTrie<Addr, Route> = LpmTrie::pinned(maps::ROUTES.max_entries, 0);
#[map]
static ROUTE_BLOCKS: Array<Slot<Route>> = Array::pinned(maps::ROUTE_BLOCKS.max_entries, 0);
#[map]
static PEERS: Array<Peer> = Array::pinned(maps::PEERS.max_entries, 0);
/// For people only; declared here so that it is created and pinned with the others.
#[map]
static PEER_INFO: Array<PeerInfo> = Array::pinned(maps::PEER_INFO.max_entries, 0);
#[map]
static NODE_ADDRS: HashMap<Addr, NodeAddr> = HashMap::pinned(maps::NODE_ADDRS.max_entries, 0);
#[map]
static NODE_SLOTS: Array<Slot<NodeAddr>> = Array::pinned(maps::NODE_SLOTS.max_entries, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(maps::FLOWS.max_entries, 0);
#[map]
static FLOW_PAIRS: Array<u32> = Array::pinned(maps::FLOW_PAIRS.max_entries, 0);
#[map]
pub static COUNTERS: PerCpuArray<Tally> = PerCpuArray::pinned(maps::COUNTERS.max_entries, 0);
#[map]
pub static DROPS: PerCpuArray<Tally> = PerCpuArray::pinned(maps::DROPS.max_entries, 0);
#[map]
pub static PEER_TRAFFIC: PerCpuArray<PeerTraffic> =
    PerCpuArray::pinned(maps::PEER_TRAFFIC.max_entries, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(maps::EVENTS.max_entries, 0);
#[map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget> =
    PerCpuArray::pinned(maps::EVENT_BUDGET.max_entries, 0);

/// The node's settings; all zero until the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The local pod with this address.
#[inline(always)]
pub fn pod(address: Addr) -> Option<&'static Pod> {
    in_slot(&POD_SLOTS, address.slot(), address).or_else(|| in_map(&PODS, address))
}

/// What is known of a node's address.
#[inline(always)]
pub fn node_addr(address: Addr) -> Option<&'static NodeAddr> {
    in_slot(&NODE_SLOTS, address.slot(), address).or_else(|| in_map(&NODE_ADDRS, address))
}

/// The longest prefix that holds `address`. A block that one /24 decides is found without walking the
/// trie, which costs a cache line a level.
#[inline(always)]
pub fn route(address: Addr) -> Option<&'static Route> {
    let of_block = in_slot(&ROUTE_BLOCKS, address.block_slot(), address.block());
    of_block.or_else(|| longest_prefix(address))
}

/// The entry of `address`, if its place in a table holds it.
#[inline(always)]
fn in_slot<V>(table: &'static Array<Slot<V>>, place: u32, address: Addr) -> Option<&'static V> {
    table.get(place)?.of(address)
}

/// Its entry in the map behind a table: it shares its place with another, or there is none.
#[inline(always)]
fn in_map<V>(map: &'static HashMap<Addr, V>, address: Addr) -> Option<&'static V> {
    cold_path();
    // SAFETY: an entry that is replaced meanwhile reads as its old or its new value (user space
    // replaces whole elements); both were true a moment ago.
    unsafe { map.get(address) }
}

#[inline(always)]
fn longest_prefix(address: Addr) -> Option<&'static Route> {
    cold_path();
    let key = RouteKey::new(address, 32);
    // The trie's own key type is packed, which would make BPF store the key byte by byte.
    // SAFETY: both are `struct bpf_lpm_trie_key`: a u32 and four bytes.
    let key = unsafe { &*(&raw const key).cast::<Key<Addr>>() };
    ROUTES.get(key)
}

/// How to reach a peer.
#[inline(always)]
pub fn peer(index: u16) -> Option<&'static Peer> {
    PEERS.get(u32::from(index))
}

/// When the pair last had a flow out of the host stack, as the program that noted it says; 0 for never.
/// Pairs that share a place share that too. One aligned word: every CPU reads and writes it whole.
#[inline(always)]
pub fn flow_pair(one: Addr, other: Addr) -> Option<*mut u32> {
    FLOW_PAIRS.get_ptr_mut(pair_slot(one, other))
}
