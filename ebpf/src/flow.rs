//! The slow path: if the forward direction of a flow came out of the host stack, its replies must go back
//! through the stack. Otherwise they would bypass the stack's connection tracking, which must undo a Service's
//! DNAT.
//!
//! The LRU map `FLOWS` has one entry per flow, under the canonical key of both directions. The entry says which end
//! sent the packet that came out of the stack. Packets in the opposite direction take the slow path. If a packet
//! in the recorded direction takes the fast path, a new connection reuses the tuple without the stack: the entry is
//! stale.
//!
//! Open TCP connections also have an entry in `CONNECTIONS`, because they may be idle until thousands of other flows have
//! displaced them from `FLOWS` (`connection`).
//!
//! Most pairs of pods never communicate through the stack. A word for each pair of addresses (`FLOW_PAIRS`) holds the
//! last epoch in which they did, because reading it is cheaper than a lookup in `FLOWS`.

use crate::{connection, ipv4::Ipv4, maps, packet::Packet, report::count_rare, tuple::tuple};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_jiffies64};
use core::hint::cold_path;
use ipip_abi::{
    Addr, Counter, Flow,
    wire::{PROTO_ICMP, PROTO_TCP},
};

/// Whether the packet, which is not a fragment and whose IP header is at `offset`, must take the slow path because
/// its flow came out of the host stack. Deletes the flow's entry if that is stale. An ICMP error never shows this: it may
/// quote any flow, also one of other pods.
#[inline(always)]
pub fn came_from_stack(packet: &Packet, offset: usize, ip: &Ipv4) -> bool {
    // The addresses that decide about an ICMP error are those of the packet that it quotes.
    let may = ip.protocol == PROTO_ICMP || may_have_flow(ip.source, ip.destination);
    if !may {
        return false;
    }
    cold_path();
    has_flow_against(packet.skb, offset)
}

/// Whether the pair had a flow out of the host stack in this epoch or the one before.
#[inline(always)]
fn may_have_flow(one: Addr, other: Addr) -> bool {
    let Some(pair) = maps::flow_pair(one, other) else {
        return false;
    };
    // SAFETY: `flow_pair` returns a valid pointer to an aligned word, which other CPUs write whole.
    let marked = unsafe { pair.read_volatile() };
    marked != 0 && epoch().wrapping_sub(marked) <= 1
}

/// Marks the pair as one that may have an entry in `FLOWS`. Callers do this before they write the entry, so that
/// the flow's first reply finds the entry.
#[inline(always)]
fn mark_pair(one: Addr, other: Addr) {
    let Some(pair) = maps::flow_pair(one, other) else {
        return;
    };
    let now = epoch();
    // The word is written only if it changes, so that CPUs can share the cache line.
    // SAFETY: `flow_pair` returns a valid pointer to an aligned word, which other CPUs write whole.
    unsafe {
        if pair.read_volatile() != now {
            pair.write_volatile(now);
        }
    }
}

/// Coarse clock in units of 2^29 jiffies (6 days at HZ=1000), starting at 1 because 0 means "never". Conntrack
/// forgets TCP connections after 5 idle days (`nf_conntrack_tcp_timeout_established`), so older entries can be
/// ignored.
#[inline(always)]
fn epoch() -> u32 {
    const JIFFIES_BITS: u32 = 29;
    // SAFETY: the helper has no arguments and no preconditions.
    1 + (unsafe { bpf_jiffies64() } >> JIFFIES_BITS) as u32
}

/// Whether the packet's flow has an entry for the opposite direction. Deletes an entry for the packet's direction.
/// Not inlined, so that the fast path stays short: few packets need this lookup.
#[inline(never)]
fn has_flow_against(skb: *mut __sk_buff, offset: usize) -> bool {
    let packet = &Packet { skb };
    let Some(ip) = packet.ipv4(offset) else {
        return false;
    };
    let tuple = tuple(packet, offset, &ip);
    let (key, from_low) = tuple.canonical_key();
    let is_tcp = ip.protocol == PROTO_TCP;
    // SAFETY: an entry is one aligned word, so an entry that is replaced meanwhile reads as its old or its new
    // value.
    let (kept, flow) = unsafe {
        match maps::CONNECTIONS.get(key) {
            Some(flow) => (true, *flow),
            None => match maps::FLOWS.get(key) {
                Some(flow) => (false, *flow),
                None => return false,
            },
        }
    };
    if flow.from_low() == from_low {
        if tuple.is_error {
            return false;
        }
        // A deletion fails if another CPU has already deleted the entry.
        let _ = maps::FLOWS.remove(key);
        let _ = maps::CONNECTIONS.remove(key);
        count_rare(skb, Counter::FlowForgotten);
        return false;
    }
    if is_tcp {
        connection::follow(packet, offset, &ip, &key, flow, kept);
    }
    count_rare(skb, Counter::FlowToStack);
    true
}

/// Records that this packet's flow came out of the host stack. An existing entry is not changed. Replies take the
/// slow path *because of* the entry; if they flipped its direction, both directions would stay on the slow path
/// forever. An ICMP error is not recorded: it has no reply, and may quote any flow.
#[inline(always)]
pub fn record(packet: &Packet, offset: usize, ip: &Ipv4) {
    let tuple = tuple(packet, offset, ip);
    if tuple.is_error {
        return;
    }
    mark_pair(tuple.source, tuple.destination);
    let (key, from_low) = tuple.canonical_key();
    // SAFETY: an entry is one aligned word, so an entry that is replaced meanwhile reads as its old or its new
    // value.
    if unsafe { maps::FLOWS.get(key) }.is_some() {
        return;
    }
    // The map is an LRU: an insertion fails only if this CPU has no free entry at this moment. The flow's next
    // packet tries again.
    if maps::FLOWS.insert(key, Flow::new(from_low), 0).is_ok() {
        count_rare(packet.skb, Counter::FlowRecorded);
    }
}
