//! The symmetric path: a flow whose forward direction came out of the host stack must go back
//! through it, or its reply would skip the stack's un-DNAT.
//!
//! One LRU entry a conversation, whatever the direction, holds which end sent the packet that
//! came out of the stack. The opposite direction takes the stack. The same direction on the fast
//! path is a new conversation that reuses the tuple without the stack: the entry is stale.
//!
//! Most pairs of pods never talk through the stack. A word for each pair of addresses says so, which is
//! cheaper to ask than the LRU.

use crate::{
    maps,
    packet::{IPV4_LEN, Ipv4, Packet},
    report::count,
};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_jiffies64};
use core::hint::cold_path;
use ipip_abi::{Addr, Counter, Flow, FlowKey};

const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const PROTO_SCTP: u8 = 132;

/// The conversation that a packet belongs to, in the packet's direction.
#[derive(Clone, Copy)]
struct Tuple {
    source: Addr,
    destination: Addr,
    ports: Ports,
    protocol: u8,
}

/// Source and destination port as they begin a transport header.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
struct Ports {
    source: [u8; 2],
    destination: [u8; 2],
}

/// What an ICMP error quotes of the packet that caused it (RFC 792): a header without options
/// and the ports. A type of its own keeps the helper's length constant.
#[derive(Clone, Copy)]
#[repr(C)]
struct Quote {
    ip: Ipv4,
    ports: Ports,
}

impl Tuple {
    #[inline(always)]
    fn key(&self) -> (FlowKey, bool) {
        FlowKey::of(
            self.source,
            self.ports.source,
            self.destination,
            self.ports.destination,
            self.protocol,
        )
    }
}

/// Whether the packet, which is no fragment and whose IP header is at `offset`, must take the
/// host stack. Forgets a stale entry on the way.
#[inline(always)]
pub fn came_from_stack(packet: &Packet, offset: usize, ip: &Ipv4) -> bool {
    // An ICMP error speaks of other addresses than its own.
    let may = ip.protocol == PROTO_ICMP || may_have_flow(ip.source, ip.destination);
    if !may {
        return false;
    }
    cold_path();
    has_flow_against(packet.skb, offset)
}

#[inline(always)]
fn may_have_flow(one: Addr, other: Addr) -> bool {
    let Some(pair) = maps::flow_pair(one, other) else {
        return false;
    };
    // SAFETY: a word of a map, as `flow_pair` says.
    let noted = unsafe { pair.read_volatile() };
    noted != 0 && epoch().wrapping_sub(noted) <= 1
}

/// Before the entry itself, or its first reply could miss it.
#[inline(always)]
fn note_pair(one: Addr, other: Addr) {
    let Some(pair) = maps::flow_pair(one, other) else {
        return;
    };
    let now = epoch();
    // SAFETY: as in `may_have_flow`. Only a change is written, so that CPUs can share the cache line.
    unsafe {
        if pair.read_volatile() != now {
            pair.write_volatile(now);
        }
    }
}

/// A span of time, never 0: 2^29 ticks, six days at 1000 Hz and longer at fewer. Of a connection that was
/// idle for longer than five days conntrack knows nothing (`nf_conntrack_tcp_timeout_established`), so
/// nothing in the stack waits for its replies.
#[inline(always)]
fn epoch() -> u32 {
    const TICKS: u32 = 29;
    // SAFETY: the helper has no preconditions.
    1 + (unsafe { bpf_jiffies64() } >> TICKS) as u32
}

/// Not in line: few packets come here, and all others should not carry the code.
#[inline(never)]
fn has_flow_against(skb: *mut __sk_buff, offset: usize) -> bool {
    let packet = &Packet { skb };
    let Some(ip) = packet.ipv4(offset) else {
        return false;
    };
    let (key, from_low) = tuple(packet, offset, &ip).key();
    // SAFETY: an entry that is replaced meanwhile reads as its old or its new value.
    let Some(flow) = (unsafe { maps::FLOWS.get(key) }) else {
        return false;
    };
    if flow.from_low == u32::from(from_low) {
        // A deletion that fails met one from another CPU.
        let _ = maps::FLOWS.remove(key);
        count(packet, Counter::FlowForgotten);
        return false;
    }
    count(packet, Counter::SymmetricDetour);
    true
}

/// Notes that this packet's flow came out of the host stack. Where an entry is, it stays as it is:
/// the packet that made it began the conversation, and one that only detours because of it must not
/// turn it round, or both directions would detour for good.
#[inline(always)]
pub fn record(packet: &Packet, offset: usize, ip: &Ipv4) {
    let tuple = tuple(packet, offset, ip);
    note_pair(tuple.source, tuple.destination);
    let (key, from_low) = tuple.key();
    let flow = Flow {
        from_low: u32::from(from_low),
    };
    // SAFETY: as in `has_flow_against`.
    if unsafe { maps::FLOWS.get(key) }.is_some() {
        return;
    }
    // The map is an LRU: an insertion fails only for lack of a free entry on this CPU right now,
    // and the flow's next packet tries again.
    if maps::FLOWS.insert(key, flow, 0).is_ok() {
        count(packet, Counter::FlowRecorded);
    }
}

#[inline(always)]
fn tuple(packet: &Packet, offset: usize, ip: &Ipv4) -> Tuple {
    let mut tuple = Tuple {
        source: ip.source,
        destination: ip.destination,
        ports: Ports::default(),
        protocol: ip.protocol,
    };
    match ip.protocol {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP if !ip.is_later_fragment() => {
            tuple.ports = ports(packet, offset, ip);
        }
        PROTO_ICMP if !ip.is_later_fragment() => quoted(packet, offset, ip, &mut tuple),
        _ => {}
    }
    tuple
}

#[inline(always)]
fn ports(packet: &Packet, offset: usize, ip: &Ipv4) -> Ports {
    if ip.header_len() == IPV4_LEN
        && let Some(ports) = packet.read(offset + IPV4_LEN)
    {
        return ports;
    }
    let mut ports = Ports::default();
    // A packet too short for ports keeps 0, which is a conversation like any other.
    let _ = packet.load(offset + ip.header_len(), &mut ports);
    ports
}

/// An ICMP error belongs to the conversation of the packet that it quotes, against its direction.
#[inline(always)]
fn quoted(packet: &Packet, offset: usize, ip: &Ipv4, tuple: &mut Tuple) {
    const ICMP_LEN: usize = 8;
    let mut kind = 0_u8;
    let offset = offset + ip.header_len();
    if !packet.load(offset, &mut kind) {
        return;
    }
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    if !matches!(kind, 3 | 4 | 5 | 11 | 12) {
        return;
    }
    let mut quote = core::mem::MaybeUninit::<Quote>::zeroed();
    // SAFETY: all bytes are initialised to zero, which is a valid `Quote`.
    let quote = unsafe { quote.assume_init_mut() };
    if !packet.load(offset + ICMP_LEN, quote) || quote.ip.header_len() != IPV4_LEN {
        return;
    }
    tuple.source = quote.ip.destination;
    tuple.destination = quote.ip.source;
    tuple.protocol = quote.ip.protocol;
    if matches!(quote.ip.protocol, PROTO_TCP | PROTO_UDP | PROTO_SCTP) {
        tuple.ports = Ports {
            source: quote.ports.destination,
            destination: quote.ports.source,
        };
    }
}
