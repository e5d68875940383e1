//! The symmetric path: a flow whose forward direction came out of the host stack must go back
//! through it, or its reply would skip the stack's un-DNAT.
//!
//! One LRU entry a conversation, whatever the direction, holds which end sent the packet that
//! came out of the stack. The opposite direction takes the stack. The same direction on the fast
//! path is a new conversation that reuses the tuple without the stack: the entry is stale.

use crate::{
    maps,
    packet::{IPV4_LEN, Ipv4, Packet},
    report::count,
};
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
    let (key, from_low) = tuple(packet, offset, ip).key();
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
    let (key, from_low) = tuple(packet, offset, ip).key();
    let flow = Flow {
        from_low: u32::from(from_low),
    };
    // SAFETY: as in `came_from_stack`.
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
