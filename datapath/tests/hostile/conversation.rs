//! Random sequences of packets between a pod and another end, on the fast path and out of the host stack: what one packet
//! changes decides about the next ones.

use crate::{
    generate::{
        Case,
        Place::{Inner, Outer},
        chance, datagram, header, pick,
    },
    world::{LIMITED, NO_POD, OWN, PEERS, POD, POD_2, STRANGER, by_underlay, owner, peer},
};
use fastrand::Rng;
use ipip_abi::{Addr, DEFAULT_UDP_PORT, Encapsulation, Program};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// No ports, and no meaning to a node: ESP.
const OTHER: u8 = 50;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// The ends of a flow.
#[derive(Clone, Copy, Debug)]
struct Tuple {
    pod: (Addr, u16),
    other: (Addr, u16),
    protocol: u8,
}

/// A random sequence. It is short, so that few packets explain a difference.
pub fn conversation(rng: &mut Rng) -> Vec<Case> {
    let tuple = Tuple {
        pod: (
            *pick(rng, &[POD, POD, POD, POD, POD, POD, POD, POD_2, LIMITED]),
            80,
        ),
        other: (other_end(rng), 40_000),
        protocol: *pick(rng, &[TCP, TCP, TCP, TCP, UDP, UDP, ICMP, OTHER]),
    };
    let len = rng.usize(3..12);
    (0..len)
        .map(|_| {
            let tuple = similar(rng, tuple);
            packet_of(rng, tuple)
        })
        .collect()
}

fn other_end(rng: &mut Rng) -> Addr {
    let peer = pick(rng, &PEERS);
    match rng.u8(..16) {
        0 => peer.internal_ip.unwrap_or(STRANGER),
        1 => peer.underlay().unwrap_or(STRANGER),
        2 | 3 => POD_2,
        4 => *pick(rng, &[OWN, NO_POD, STRANGER, LIMITED]),
        _ => peer.pod(),
    }
}

/// In most cases the same tuple.
fn similar(rng: &mut Rng, mut tuple: Tuple) -> Tuple {
    match rng.u8(..24) {
        0 => tuple.other.1 ^= 1,
        1 => tuple.pod.1 ^= 1,
        // The other end has the pod's port and the reverse.
        2 => (tuple.pod.1, tuple.other.1) = (tuple.other.1, tuple.pod.1),
        3 => tuple.other.0 = other_end(rng),
        4 => tuple.protocol = *pick(rng, &[TCP, UDP, ICMP, OTHER]),
        _ => {}
    }
    tuple
}

fn packet_of(rng: &mut Rng, tuple: Tuple) -> Case {
    let from_pod = rng.bool();
    let (from, to) = match from_pod {
        true => (tuple.pod, tuple.other),
        false => (tuple.other, tuple.pod),
    };
    let packet = match rng.u8(..8) {
        0 => error(rng, from, to, tuple.protocol),
        _ => {
            let payload = payload(rng, from.1, to.1, tuple.protocol);
            header(rng, from.0, to.0, tuple.protocol, payload, Inner)
        }
    };
    let program = match (from_pod, rng.u8(..10)) {
        (true, 0..6) => Program::FromPod,
        (true, 6..9) => Program::FromHost,
        (true, _) => Program::FromFarEnd,
        (false, 0..6) => Program::FromUplink,
        (false, _) => Program::ToPod,
    };
    let packet = match program {
        Program::FromUplink => from_owner(rng, from.0, packet),
        _ => packet,
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(packet);
    Case {
        program,
        frame,
        gso_size: match program {
            // `BPF_PROG_TEST_RUN` cannot state the tunnel of a GSO packet, so no kernel decapsulates it.
            Program::FromUplink => 0,
            _ if chance(rng, 5) => 500,
            _ => 0,
        },
        foreign_ipip: false,
    }
}

fn payload(rng: &mut Rng, from: u16, to: u16, protocol: u8) -> Vec<u8> {
    let len = match rng.u8(..10) {
        0..5 => 0,
        // Around the MTU.
        5 => rng.usize(1438..1482),
        _ => rng.usize(1..40),
    };
    let data = vec![7; len];
    match protocol {
        TCP => segment(rng, from, to, &data),
        UDP => datagram(from, to, &data),
        ICMP => [&[8, 0, 0, 0, 0, 1, 0, 1], &data[..]].concat(),
        _ => [&[1; 8], &data[..]].concat(),
    }
}

fn segment(rng: &mut Rng, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let usual = [
        SYN,
        SYN | ACK,
        ACK,
        ACK,
        PSH | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        SYN | RST,
        SYN | FIN,
    ];
    let flags = match rng.u8(..12) {
        0 => rng.u8(..),
        _ => *pick(rng, &usual),
    };
    let words = *pick(rng, &[5_u8, 5, 8, 15]);
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 1, 0, 0, 0, 0, 0]);
    segment.resize(usize::from(words) * 4, 1);
    segment.extend(data);
    segment
}

/// An ICMP error about a packet of the flow's other direction, from its receiver or from a router on its way.
fn error(rng: &mut Rng, from: (Addr, u16), to: (Addr, u16), protocol: u8) -> Vec<u8> {
    let payload = payload(rng, to.1, from.1, protocol);
    let mut quote = header(rng, to.0, from.0, protocol, payload, Inner);
    if chance(rng, 70) {
        // At least the header and eight bytes (RFC 792).
        let header_len = usize::from(quote[0] & 15) * 4;
        quote.truncate(header_len + 8);
    }
    if chance(rng, 10) {
        quote.truncate(rng.usize(..quote.len()));
    }
    let kind = *pick(rng, &[3, 3, 3, 11, 12, 4, 5, 0, 8]);
    let mut message = vec![kind, rng.u8(..6), 0, 0, 0, 0, 5, 0];
    message.extend(quote);
    let router = owner(from.0)
        .filter(|(index, _)| *index != 0)
        .and_then(|(index, _)| peer(index).internal_ip);
    let source = match router {
        Some(router) if chance(rng, 30) => router,
        // Others quote the flow, too.
        _ if chance(rng, 20) => POD,
        _ => from.0,
    };
    let destination = if chance(rng, 10) {
        other_end(rng)
    } else {
        to.0
    };
    header(rng, source, destination, ICMP, message, Inner)
}

/// The packet as the node that owns its source sends it.
fn from_owner(rng: &mut Rng, source: Addr, packet: Vec<u8>) -> Vec<u8> {
    let owner = owner(source).filter(|(index, _)| *index != 0);
    let peer = owner.map(|(index, _)| *peer(index));
    let peer = peer.or(by_underlay(source).copied());
    let Some((underlay, encapsulation)) = peer.and_then(|it| it.path) else {
        return packet;
    };
    match encapsulation {
        Encapsulation::Direct => packet,
        _ if rng.bool() => header(rng, underlay, OWN, 4, packet, Outer),
        _ => {
            let payload = datagram(rng.u16(..), DEFAULT_UDP_PORT, &packet);
            header(rng, underlay, OWN, UDP, payload, Outer)
        }
    }
}
