//! Addresses and ports of the flow that a packet belongs to.

use crate::{ipv4::Ipv4, packet::Packet};
use ipip_abi::{
    Addr, FlowKey,
    wire::{IPV4_LEN, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

/// The flow that a packet belongs to, in the packet's direction.
#[derive(Clone, Copy)]
pub struct Tuple {
    pub source: Addr,
    pub destination: Addr,
    ports: Ports,
    protocol: u8,
    /// The packet is an ICMP error that quotes the flow.
    pub is_error: bool,
}

/// Source and destination port: the first four bytes of a transport header.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4))]
struct Ports {
    source: [u8; 2],
    destination: [u8; 2],
}

/// The part of an ICMP error that quotes the packet that caused it (RFC 792): a header without options and the
/// ports. It is a type of its own, so that the helper reads a constant length.
#[derive(Clone, Copy)]
#[repr(C)]
struct Quote {
    ip: Ipv4,
    ports: Ports,
}

impl Tuple {
    /// The key of both directions, and whether this packet goes from the key's low end to its high end.
    #[inline(always)]
    pub fn canonical_key(&self) -> (FlowKey, bool) {
        FlowKey::canonical(
            self.source,
            self.ports.source,
            self.destination,
            self.ports.destination,
            self.protocol,
        )
    }
}

/// The tuple of the packet whose IP header `ip` is at `offset`.
#[inline(always)]
pub fn tuple(packet: &Packet, offset: usize, ip: &Ipv4) -> Tuple {
    let mut tuple = Tuple {
        source: ip.source,
        destination: ip.destination,
        ports: Ports::default(),
        protocol: ip.protocol,
        is_error: false,
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
    // If the packet is too short for ports, they stay 0: such packets form a flow of their own.
    let _ = packet.load(offset + ip.header_len(), &mut ports);
    ports
}

/// An ICMP error belongs to the flow of the packet that it quotes, in the opposite direction.
#[inline(always)]
fn quoted(packet: &Packet, offset: usize, ip: &Ipv4, tuple: &mut Tuple) {
    let Some(offset) = quote_offset(packet, offset, ip) else {
        return;
    };
    let mut quote = core::mem::MaybeUninit::<Quote>::zeroed();
    // SAFETY: all bytes are zero, and a `Quote` of zeros is valid.
    let quote = unsafe { quote.assume_init_mut() };
    if !packet.load(offset, quote) || quote.ip.header_len() != IPV4_LEN {
        return;
    }
    tuple.source = quote.ip.destination;
    tuple.destination = quote.ip.source;
    tuple.protocol = quote.ip.protocol;
    tuple.is_error = true;
    if matches!(quote.ip.protocol, PROTO_TCP | PROTO_UDP | PROTO_SCTP) {
        tuple.ports = Ports {
            source: quote.ports.destination,
            destination: quote.ports.source,
        };
    }
}

/// Where the packet starts that an ICMP error quotes; `None` for other ICMP packets.
#[inline(always)]
fn quote_offset(packet: &Packet, offset: usize, ip: &Ipv4) -> Option<usize> {
    const ICMP_LEN: usize = 8;
    let mut kind = 0_u8;
    let offset = offset + ip.header_len();
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    let is_error = packet.load(offset, &mut kind) && matches!(kind, 3 | 4 | 5 | 11 | 12);
    is_error.then_some(offset + ICMP_LEN)
}

/// Source and destination of a packet.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Addresses {
    pub source: Addr,
    pub destination: Addr,
}

/// The addresses of the packet that an ICMP error quotes; `None` for other ICMP packets.
#[inline(always)]
pub fn quoted_addresses(packet: &Packet, offset: usize, ip: &Ipv4) -> Option<Addresses> {
    const SOURCE: usize = 12;
    let mut addresses = Addresses::default();
    let offset = quote_offset(packet, offset, ip)?;
    packet
        .load(offset + SOURCE, &mut addresses)
        .then_some(addresses)
}
