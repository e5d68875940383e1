//! What is told about packets: counters, and sampled events of drops.

use crate::{
    DROP, maps,
    packet::{ETH_LEN, Packet},
};
use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::PerCpuArray};
use core::hint::cold_path;
use ipip_abi::{
    Counter, DEFAULT_UDP_PORT, DropEvent, DropReason, Encapsulation, Hook, IPIP_OVERHEAD,
    PROTO_IPIP, Tally, UDP_OVERHEAD,
};

const SECOND_NS: u64 = 1_000_000_000;
const PROTO_UDP: u8 = 17;

#[inline(always)]
fn tally(map: &PerCpuArray<Tally>, slot: u32, bytes: usize) {
    if let Some(tally) = map.get_ptr_mut(slot) {
        // SAFETY: this CPU's own value; programs are not preempted by programs of this hook.
        unsafe {
            (*tally).packets += 1;
            (*tally).bytes += bytes as u64;
        }
    }
}

/// Counts a packet that was not dropped.
#[inline(always)]
pub fn count(packet: &Packet, counter: Counter) {
    tally(&maps::COUNTERS, counter as u32, packet.len());
}

/// Counts an inner packet of `bytes` that goes to `peer`.
#[inline(always)]
pub fn sent_to(peer: u16, bytes: usize) {
    if let Some(traffic) = maps::PEER_TRAFFIC.get_ptr_mut(u32::from(peer)) {
        // SAFETY: as in `tally`.
        unsafe {
            (*traffic).tx_packets += 1;
            (*traffic).tx_bytes += bytes as u64;
        }
    }
}

/// Counts an inner packet of `bytes` that came from `peer`.
#[inline(always)]
pub fn taken_from(peer: u16, bytes: usize) {
    if let Some(traffic) = maps::PEER_TRAFFIC.get_ptr_mut(u32::from(peer)) {
        // SAFETY: as in `tally`.
        unsafe {
            (*traffic).rx_packets += 1;
            (*traffic).rx_bytes += bytes as u64;
        }
    }
}

/// What a program answers the kernel.
#[inline(always)]
pub fn verdict(packet: &Packet, hook: Hook, decided: Result<i32, DropReason>) -> i32 {
    match decided {
        Ok(verdict) => verdict,
        Err(reason) => {
            cold_path();
            drop(packet, hook, reason)
        }
    }
}

/// Counts a drop, writes its event if the second's budget allows, and gives the verdict. Not in line: one
/// code for all drops.
#[inline(never)]
fn drop(packet: &Packet, hook: Hook, reason: DropReason) -> i32 {
    tally(&maps::DROPS, reason as u32, packet.len());
    if within_budget() {
        write_event(packet, hook, reason);
    } else {
        count(packet, Counter::EventSuppressed);
    }
    DROP
}

/// Whether this CPU may write one more event in this second.
#[inline(always)]
fn within_budget() -> bool {
    let (Some(config), Some(budget)) = (maps::config(), maps::EVENT_BUDGET.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: this CPU's own value, as in `tally`; the helper has no preconditions.
    unsafe {
        if (*budget).written >= u64::from(config.events_per_second) {
            // The clock is asked only here, so that a flood pays for it and nobody else.
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
fn write_event(packet: &Packet, hook: Hook, reason: DropReason) {
    let mut event = DropEvent::ZERO;
    // SAFETY: the helper has no preconditions.
    event.at_ns = unsafe { bpf_ktime_get_ns() };
    event.ifindex = packet.ifindex();
    event.len = packet.len() as u32;
    event.reason = reason as u8;
    event.hook = hook as u8;
    describe(packet, hook, reason, &mut event);
    #[cfg(feature = "debug")]
    log(packet, &event);
    // A full ring loses the event, never the count.
    let _ = maps::EVENTS.output::<DropEvent>(&event, 0);
}

/// As a line of text, where programs are debugged; bound by the same budget as the events.
#[cfg(feature = "debug")]
#[inline(always)]
fn log(packet: &Packet, event: &DropEvent) {
    aya_log_ebpf::debug!(
        &aya_ebpf::programs::TcContext::new(packet.skb),
        "drop: hook {} reason {} {:i} -> {:i} protocol {}",
        event.hook,
        event.reason,
        event.source.to_bits(),
        event.destination.to_bits(),
        event.protocol
    );
}

/// Fills in the tuple: of the inner packet where the drop is about that, else of the outer one.
#[inline(always)]
fn describe(packet: &Packet, hook: Hook, reason: DropReason, event: &mut DropEvent) {
    let mut offset = ETH_LEN;
    let mut word = 0_u8;
    if !packet.load(offset, &mut word) || word >> 4 != 4 {
        return;
    }
    if hook as u8 == Hook::FromUplink as u8 {
        let mut source = ipip_abi::Addr::default();
        if packet.load(offset + 12, &mut source)
            && let Some(node) = maps::node_addr(source)
        {
            event.peer = node.peer;
        }
        if reason.is_about_inner() {
            let mut protocol = 0_u8;
            let _ = packet.load(offset + 9, &mut protocol);
            offset += tunnel_header_len(packet, offset, protocol);
        }
    }
    let _ = packet.load(offset + 9, &mut event.protocol);
    let _ = packet.load(offset + 12, &mut event.source);
    let _ = packet.load(offset + 16, &mut event.destination);
    let mut first = [0_u8; 8];
    let has_ports = event.protocol == 6 || event.protocol == PROTO_UDP;
    if has_ports && packet.load(offset, &mut first) && first[0] == 0x45 {
        let later_fragment = u16::from_be_bytes([first[6], first[7]]) & 0x1fff != 0;
        if !later_fragment {
            let _ = packet.load(offset + 20, &mut event.source_port);
            let _ = packet.load(offset + 22, &mut event.destination_port);
        }
    }
}

/// Bytes before the inner packet; 0 where the packet is not in a tunnel.
#[inline(always)]
fn tunnel_header_len(packet: &Packet, offset: usize, protocol: u8) -> usize {
    if protocol == PROTO_IPIP {
        return usize::from(IPIP_OVERHEAD);
    }
    let mut port = [0_u8; 2];
    let ours = match maps::config() {
        Some(config) => config.udp_port,
        None => DEFAULT_UDP_PORT.to_be_bytes(),
    };
    if protocol == PROTO_UDP && packet.load(offset + 22, &mut port) && port == ours {
        return usize::from(UDP_OVERHEAD);
    }
    Encapsulation::Direct.overhead() as usize
}
