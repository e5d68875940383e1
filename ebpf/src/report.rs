//! Counters, and sampled events of drops.

use crate::{maps, packet::Packet, tunnel};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_ktime_get_ns, maps::PerCpuArray};
use ipip_abi::{
    Addr, Counter, DropEvent, DropReason, LARGE, Program, SENT_LARGE_UNSEEN, SENT_UNSEEN, Tally,
    wire::{ETH_LEN, IPV4_LEN, OUTER_IP_LEN, OUTER_IP_UDP_LEN, PROTO_IPIP, PROTO_TCP, PROTO_UDP},
};

const SECOND_NS: u64 = 1_000_000_000;

#[inline(always)]
fn tally(map: &PerCpuArray<Tally>, code: u32, bytes: usize) {
    if let Some(tally) = map.get_ptr_mut(code) {
        // SAFETY: the pointer is to this CPU's own value, and no other TC program preempts this one.
        unsafe {
            (*tally).packets += 1;
            (*tally).bytes += bytes as u64;
        }
    }
}

/// Counts a packet that was not dropped.
#[inline(always)]
pub fn count(packet: &Packet, counter: Counter) {
    count_frame(packet.len(), counter);
}

/// [`count`] for what happens to few packets. Not inlined, so that all places share the code.
#[inline(never)]
pub fn count_rare(skb: *mut __sk_buff, counter: Counter) {
    count(&Packet { skb }, counter);
}

/// Counts a packet that was not dropped, and whose frame had `len` bytes before its headers changed.
#[inline(always)]
pub fn count_frame(len: usize, counter: Counter) {
    tally(&maps::COUNTERS, counter as u32, len);
}

/// An index beyond those of peers: what is sent to it is counted for none.
pub const UNCOUNTED: u16 = u16::MAX;

/// Counts a packet that was sent to `peer`, and `bytes` on the wire.
#[inline(always)]
pub fn count_tx(peer: u16, is_public: bool, bytes: usize) {
    if let Some(traffic) = maps::PEER_TRAFFIC.get_ptr_mut(u32::from(peer)) {
        // SAFETY: the pointer is to this CPU's own value, and no other TC program preempts this one.
        unsafe {
            (*traffic).tx_packets += 1;
            (*traffic).bytes.tx[usize::from(is_public)] += bytes as u64;
        }
    }
}

/// Tells the agent that there is a packet to `peer`, of so many `bytes` without outer headers.
#[inline(always)]
pub fn tell_agent(peer: u16, bytes: usize) {
    let news = match bytes > LARGE {
        true => SENT_UNSEEN | SENT_LARGE_UNSEEN,
        false => SENT_UNSEEN,
    };
    // Written only when user space has cleared it: otherwise all CPUs would write the same cache line for each packet.
    if let Some(sent) = maps::SENT.get_ptr_mut(u32::from(peer)) {
        // SAFETY: the pointer is valid until the program ends. Others write it at the same time, whole words, and the last one wins.
        unsafe {
            let before = sent.read_volatile();
            if before & news != news {
                sent.write_volatile(before | news);
            }
        }
    }
}

/// Counts a packet that was received from `peer`, and `bytes` on the wire.
#[inline(always)]
pub fn count_rx(peer: u16, is_public: bool, bytes: usize) {
    if let Some(traffic) = maps::PEER_TRAFFIC.get_ptr_mut(u32::from(peer)) {
        // SAFETY: the pointer is to this CPU's own value, and no other TC program preempts this one.
        unsafe {
            (*traffic).rx_packets += 1;
            (*traffic).bytes.rx[usize::from(is_public)] += bytes as u64;
        }
    }
}

/// Counts a drop, and writes its event if this second's budget allows. Not inlined, so that all drops share the
/// code.
#[inline(never)]
pub fn drop(packet: &Packet, program: Program, reason: DropReason) {
    tally(&maps::DROPS, reason as u32, packet.len());
    if within_budget() {
        write_event(packet, program, reason);
    } else {
        count_rare(packet.skb, Counter::EventSuppressed);
    }
}

/// Whether this CPU may write one more event in this second.
#[inline(always)]
fn within_budget() -> bool {
    let (Some(config), Some(budget)) = (maps::config(), maps::EVENT_BUDGET.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: the pointer is to this CPU's own value, and no other TC program preempts this one. The helper has
    // no preconditions.
    unsafe {
        if (*budget).written >= u64::from(config.events_per_second) {
            // The clock is read only after the budget is used up, so that only a flood of drops pays for it.
            let now = bpf_ktime_get_ns();
            if now - (*budget).began_ns < SECOND_NS {
                return false;
            }
            (*budget).began_ns = now;
            (*budget).written = 0;
        }
        (*budget).written += 1;
        (*budget).written <= u64::from(config.events_per_second)
    }
}

#[inline(always)]
fn write_event(packet: &Packet, program: Program, reason: DropReason) {
    let mut event = DropEvent::ZERO;
    // SAFETY: the helper has no preconditions.
    event.at_ns = unsafe { bpf_ktime_get_ns() };
    event.ifindex = packet.ifindex();
    event.len = packet.len() as u32;
    event.reason = reason as u8;
    event.program = program as u8;
    describe(packet, program, reason, &mut event);
    #[cfg(feature = "debug")]
    log(packet, &event);
    // A full ring loses the event, never the count.
    let _ = maps::EVENTS.output::<DropEvent>(&event, 0);
}

/// Logs the event as a line of text, for debugging. The events' budget limits it too.
#[cfg(feature = "debug")]
#[inline(always)]
fn log(packet: &Packet, event: &DropEvent) {
    aya_log_ebpf::debug!(
        &aya_ebpf::programs::TcContext::new(packet.skb),
        "drop: program {} reason {} {:i} -> {:i} protocol {}",
        event.program,
        event.reason,
        event.source.to_bits(),
        event.destination.to_bits(),
        event.protocol
    );
}

/// Fills in the addresses and ports: those of the inner packet if the drop is about it, otherwise those of the
/// outer one.
#[inline(always)]
fn describe(packet: &Packet, program: Program, reason: DropReason, event: &mut DropEvent) {
    let mut offset = ETH_LEN;
    let mut word = 0_u8;
    if !packet.load(offset, &mut word) || word >> 4 != 4 {
        return;
    }
    if program as u8 == Program::FromUplink as u8 {
        let mut source = Addr::default();
        if packet.load(offset + 12, &mut source)
            && let Some(node) = maps::node_addr(source)
        {
            event.peer = node.peer;
        }
        if reason.is_about_inner() {
            offset += outer_headers_len(packet);
        }
    }
    let _ = packet.load(offset + 9, &mut event.protocol);
    let _ = packet.load(offset + 12, &mut event.source);
    let _ = packet.load(offset + 16, &mut event.destination);
    let mut first = [0_u8; 8];
    let has_ports = event.protocol == PROTO_TCP || event.protocol == PROTO_UDP;
    if has_ports && packet.load(offset, &mut first) && first[0] == 0x45 {
        let later_fragment = u16::from_be_bytes([first[6], first[7]]) & 0x1fff != 0;
        if !later_fragment {
            let _ = packet.load(offset + IPV4_LEN, &mut event.source_port);
            let _ = packet.load(offset + IPV4_LEN + 2, &mut event.destination_port);
        }
    }
}

/// Bytes of outer headers before the inner packet; 0 if the packet is not in a tunnel.
#[inline(always)]
fn outer_headers_len(packet: &Packet) -> usize {
    match packet.ipv4(ETH_LEN) {
        // Tunnel packets with options are dropped before the inner packet is read.
        Some(outer) if outer.header_len() != IPV4_LEN => 0,
        Some(outer) if outer.protocol == PROTO_IPIP => OUTER_IP_LEN,
        Some(outer) if outer.protocol == PROTO_UDP && tunnel::is_for_our_port(packet, &outer) => {
            // A probe of a `direct` path has this port, too.
            match maps::node_addr(outer.destination) {
                Some(_) => OUTER_IP_UDP_LEN,
                None => 0,
            }
        }
        _ => 0,
    }
}
