//! The maps, declared from the table in `ipip_abi::maps` and pinned by name.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    helpers::bpf_jiffies64,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use core::hint::cold_path;
use ipip_abi::{
    Addr, Cached, Config, EventBudget, Flow, FlowKey, Mac, MtuHint, NodeAddr, Peer, PeerInfo,
    PeerTraffic, Pod, Route, RouteKey, Tally, flow_pair_index,
    handover::{PodKey, PodRecord},
    maps,
    probe::{ProbeSecret, ProbeState, candidate_index},
};

#[map]
static CONFIG: Array<Config> = Array::pinned(maps::CONFIG.max_entries, 0);
#[map]
static PODS: HashMap<Addr, Pod> = HashMap::pinned(maps::PODS.max_entries, 0);
#[map]
static POD_CACHE: Array<Cached<Pod>> = Array::pinned(maps::POD_CACHE.max_entries, 0);
#[map]
static ROUTES: LpmTrie<Addr, Route> = LpmTrie::pinned(maps::ROUTES.max_entries, 0);
#[map]
static ROUTE_CACHE: Array<Cached<Route>> = Array::pinned(maps::ROUTE_CACHE.max_entries, 0);
#[map]
static PEERS: Array<Peer> = Array::pinned(maps::PEERS.max_entries, 0);
/// Only user space reads it. It is declared here so that it is created and pinned with the other maps.
#[map]
static PEER_INFO: Array<PeerInfo> = Array::pinned(maps::PEER_INFO.max_entries, 0);
#[map]
static CANDIDATES: Array<Peer> = Array::pinned(maps::CANDIDATES.max_entries, 0);
#[map]
static PROBE_SECRETS: Array<ProbeSecret> = Array::pinned(maps::PROBE_SECRETS.max_entries, 0);
#[map]
static PROBE_STATES: Array<ProbeState> = Array::pinned(maps::PROBE_STATES.max_entries, 0);
#[map]
static MTU_HINTS: Array<MtuHint> = Array::pinned(maps::MTU_HINTS.max_entries, 0);
#[map]
static NODE_ADDRS: HashMap<Addr, NodeAddr> = HashMap::pinned(maps::NODE_ADDRS.max_entries, 0);
#[map]
static NODE_CACHE: Array<Cached<NodeAddr>> = Array::pinned(maps::NODE_CACHE.max_entries, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(maps::FLOWS.max_entries, 0);
#[map]
pub static CONNECTIONS: LruHashMap<FlowKey, Flow> =
    LruHashMap::pinned(maps::CONNECTIONS.max_entries, 0);
#[map]
static FLOW_PAIRS: Array<u32> = Array::pinned(maps::FLOW_PAIRS.max_entries, 0);
#[map]
pub static COUNTERS: PerCpuArray<Tally> = PerCpuArray::pinned(maps::COUNTERS.max_entries, 0);
#[map]
pub static DROPS: PerCpuArray<Tally> = PerCpuArray::pinned(maps::DROPS.max_entries, 0);
#[map]
pub static PEER_TRAFFIC: PerCpuArray<PeerTraffic> =
    PerCpuArray::pinned(maps::PEER_TRAFFIC.max_entries, 0);
/// User space reads and clears it without system calls.
#[map]
pub static SENT: Array<u32> = Array::pinned(maps::SENT.max_entries, BPF_F_MMAPABLE);
#[map]
pub static ANSWERS: RingBuf = RingBuf::pinned(maps::ANSWERS.max_entries, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(maps::EVENTS.max_entries, 0);
#[cfg(not(feature = "next-abi"))]
#[map]
pub static EVENT_BUDGET: PerCpuArray<EventBudget> =
    PerCpuArray::pinned(maps::EVENT_BUDGET.max_entries, 0);
#[cfg(feature = "next-abi")]
#[map(name = "NEXT_BUDGET")]
pub static EVENT_BUDGET: PerCpuArray<EventBudget> =
    PerCpuArray::pinned(maps::EVENT_BUDGET.max_entries, 0);
/// Only user space uses it. Nodes have far fewer pods than fit, so its entries are allocated one by one.
#[map]
static POD_RECORDS: HashMap<PodKey, PodRecord> =
    HashMap::pinned(maps::POD_RECORDS.max_entries, BPF_F_NO_PREALLOC);

#[map]
static NEXT_HOPS_UNTIL: Array<u32> = Array::pinned(maps::NEXT_HOPS_UNTIL.max_entries, 0);

/// Whether the MACs in `PEERS` may be used. The agent extends the time while it follows the neighbour table.
#[inline(always)]
pub fn next_hops_are_current() -> bool {
    // SAFETY: the helper has no arguments and no preconditions.
    let now = unsafe { bpf_jiffies64() } >> maps::JIFFIES_UNIT_BITS;
    NEXT_HOPS_UNTIL
        .get(0)
        .is_some_and(|until| now as u32 <= *until)
}

/// The node's settings; all zero until the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The local pod with this address.
#[inline(always)]
pub fn pod(address: Addr) -> Option<&'static Pod> {
    in_cache(&POD_CACHE, address.cache_index(), address).or_else(|| in_map(&PODS, address))
}

/// Changes the MAC of the local pod with this address, in the map and in its cached copy. A reader on another CPU may see
/// a part of the new MAC for one packet.
#[inline(always)]
pub fn set_pod_mac(address: Addr, mac: Mac) {
    // SAFETY: a pointer to a map's value is valid until the program ends, and all bytes are valid in a MAC.
    unsafe {
        if let Some(cached) = POD_CACHE.get_ptr_mut(address.cache_index())
            && (*cached).get(address).is_some()
        {
            (*cached).value.mac = mac;
        }
        if let Some(pod) = PODS.get_ptr_mut(address) {
            (*pod).mac = mac;
        }
    }
}

/// The node that has this address, and the address's roles.
#[inline(always)]
pub fn node_addr(address: Addr) -> Option<&'static NodeAddr> {
    in_cache(&NODE_CACHE, address.cache_index(), address).or_else(|| in_map(&NODE_ADDRS, address))
}

/// The route of the longest prefix that contains `address`. A walk of the trie touches a CPU cache line for each
/// level, so blocks with a single /24 route come from the direct-mapped cache.
#[inline(always)]
pub fn route(address: Addr) -> Option<&'static Route> {
    let cached = in_cache(&ROUTE_CACHE, address.block_cache_index(), address.block());
    cached.or_else(|| longest_prefix(address))
}

/// The entry of `address`, if the cache has it at `index`.
#[inline(always)]
fn in_cache<V>(cache: &'static Array<Cached<V>>, index: u32, address: Addr) -> Option<&'static V> {
    cache.get(index)?.get(address)
}

/// The entry of `address` in the map behind a cache. The map is read if the cache does not hold the address: there is
/// no entry, or another address occupies its index.
#[inline(always)]
fn in_map<V>(map: &'static HashMap<Addr, V>, address: Addr) -> Option<&'static V> {
    cold_path();
    // SAFETY: user space replaces whole elements, so an entry that is replaced meanwhile reads as its old or
    // its new value. Both are valid.
    unsafe { map.get(address) }
}

#[inline(always)]
fn longest_prefix(address: Addr) -> Option<&'static Route> {
    cold_path();
    let key = RouteKey::new(address, 32);
    // aya's key type is packed, which would make BPF store the key byte by byte.
    // SAFETY: both types have the layout of `struct bpf_lpm_trie_key`: a u32 and four bytes.
    let key = unsafe { &*(&raw const key).cast::<Key<Addr>>() };
    ROUTES.get(key)
}

/// The path to a peer.
#[inline(always)]
pub fn peer(index: u16) -> Option<&'static Peer> {
    PEERS.get(u32::from(index))
}

/// A path that could be used to a peer.
#[inline(always)]
pub fn candidate(peer: u16, candidate: u8) -> Option<&'static Peer> {
    CANDIDATES.get(candidate_index(peer, candidate))
}

/// What authenticates the probes of a peer, if there is such a secret.
#[inline(always)]
pub fn probe_secret(peer: u16) -> Option<&'static ProbeSecret> {
    PROBE_SECRETS
        .get(u32::from(peer))
        .filter(|secret| secret.is_set())
}

/// What is remembered of the probes of a candidate.
#[inline(always)]
pub fn probe_state(peer: u16, candidate: u8) -> Option<*mut ProbeState> {
    PROBE_STATES.get_ptr_mut(candidate_index(peer, candidate))
}

/// The last ICMP error about the path to a peer.
#[inline(always)]
pub fn mtu_hint(peer: u16) -> Option<*mut MtuHint> {
    MTU_HINTS.get_ptr_mut(u32::from(peer))
}

/// The word that holds the [epoch](crate::flow) in which the pair last had a flow out of the host stack; 0 means
/// never. Pairs with the same index share the word. It is aligned, so every CPU reads and writes it whole.
#[inline(always)]
pub fn flow_pair(one: Addr, other: Addr) -> Option<*mut u32> {
    FLOW_PAIRS.get_ptr_mut(flow_pair_index(one, other))
}
