//! Random packets with the structure of real ones: most fields are valid, one or two are not.

use crate::{
    ipv4::fill_checksum,
    world::{
        LIMITED, NEIGHBOUR, NO_POD, ON_UPLINK, OWN, PEERS, POD, POD_2, POD_MAC, PROBE, Peer,
        STRANGER,
    },
};
use fastrand::Rng;
use ipip_abi::{Addr, DEFAULT_UDP_PORT, POD_GATEWAY, Program};

/// Longest payload, in bytes: with all headers the frame fits into the page of `BPF_PROG_TEST_RUN`.
const LONGEST: usize = 2800;
/// Shortest frame, in bytes. `BPF_PROG_TEST_RUN` of some kernels takes no frame that ends in its IP header.
pub const SHORTEST: usize = 34;

/// A packet, and how it arrives.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    pub program: Program,
    /// With its Ethernet header, and without the VLAN tags.
    pub frame: Vec<u8>,
    /// The size that the metadata claims for the segments of the packet; 0 if it is no GSO packet.
    pub gso_size: u16,
    /// IP-in-IP from no peer goes to the host.
    pub foreign_ipip: bool,
}

/// A random packet.
pub fn case(rng: &mut Rng) -> Case {
    let program = match rng.u8(..10) {
        0..6 => Program::FromUplink,
        6..9 => Program::FromPod,
        _ if rng.u8(..4) == 0 => Program::FromFarEnd,
        _ => Program::FromHost,
    };
    let mut packet = match program {
        Program::FromUplink => arriving(rng),
        Program::FromPod if rng.u8(..8) == 0 => return arp(rng),
        Program::FromPod => leaving(rng, POD),
        // A pod's packets out of the host stack are recorded as flows, on which later verdicts depend: see `conversation`.
        Program::FromHost | Program::ToPod | Program::FromFarEnd => leaving(rng, OWN),
    };
    damage(rng, &mut packet);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    if rng.u8(..100) == 0 {
        let ethertype: u16 = *pick(rng, &[0x86dd, 0x0806, 0x8847, 0x8100, 0x88a8, 0x0801, 0]);
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    }
    frame.extend(packet);
    let shortest = if frame[12..14] == [0x86, 0xdd] {
        SHORTEST + 20
    } else {
        SHORTEST
    };
    frame.resize(frame.len().max(shortest), 0);
    // No kernel makes a GSO packet of a SYN, so what happens to the MSS in one is open.
    let may_state_mss = frame.windows(2).any(|it| it == [2, 4]);
    Case {
        program,
        gso_size: match rng.u8(..20) {
            _ if may_state_mss => 0,
            0 => *pick(rng, &[1, 8, 536, 1400, 1448, 1480, 9000, 0x7fff, 0xffff]),
            _ => 0,
        },
        frame,
        foreign_ipip: false,
    }
}

pub fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

pub fn chance(rng: &mut Rng, percent: u8) -> bool {
    rng.u8(..100) < percent
}

/// Any address that means something to the node, or to IPv4.
fn any_address(rng: &mut Rng) -> Addr {
    let peer = pick(rng, &PEERS);
    match rng.u8(..16) {
        0 => peer.pod(),
        1 => peer.pods,
        2 => peer.internal_ip.unwrap_or(STRANGER),
        3 => peer.underlay().unwrap_or(STRANGER),
        4 => OWN,
        5 => ON_UPLINK,
        6 => POD,
        7 => POD_2,
        8 => LIMITED,
        9 => *pick(rng, &[NO_POD, PROBE]),
        10 => STRANGER,
        11 => NEIGHBOUR,
        12 => Addr([10, 96, 0, 10]),
        13 => *pick(
            rng,
            &[
                Addr([0, 0, 0, 0]),
                Addr([127, 0, 0, 1]),
                POD_GATEWAY,
                Addr([224, 0, 0, 1]),
                Addr([240, 0, 0, 1]),
                Addr([255; 4]),
            ],
        ),
        // A neighbour of a prefix's edge.
        14 => {
            let [a, b, c, _] = peer.pods.0;
            *pick(
                rng,
                &[
                    Addr([a, b, c, 255]),
                    Addr([a, b, c + 8, 0]),
                    Addr([a, b + 1, c, 2]),
                ],
            )
        }
        _ => Addr(rng.u32(..).to_be_bytes()),
    }
}

/// What arrives on an uplink.
fn arriving(rng: &mut Rng) -> Vec<u8> {
    let peer = *pick(rng, &PEERS);
    let inner = from_peer(rng, &peer);
    // Without an outer header.
    if chance(rng, 25) {
        let (source, destination) = (any_address(rng), any_address(rng));
        return match rng.u8(..4) {
            0 => inner,
            1 => packet(rng, source, OWN),
            2 if rng.bool() => about_a_tunnel_packet(rng, source),
            2 => packet(rng, source, POD),
            _ => packet(rng, source, destination),
        };
    }
    let mut source = peer.underlay().unwrap_or(STRANGER);
    let mut destination = if chance(rng, 90) { OWN } else { ON_UPLINK };
    if chance(rng, 10) {
        source = any_address(rng);
    }
    if chance(rng, 10) {
        destination = any_address(rng);
    }
    let mut payload = inner;
    if chance(rng, 3) {
        payload.extend(vec![0; rng.usize(1..40)]);
    }
    if rng.bool() {
        return header(rng, source, destination, 4, payload, Outer);
    }
    let port = if chance(rng, 95) {
        DEFAULT_UDP_PORT
    } else {
        rng.u16(..)
    };
    let len = payload.len() as u16 + 8;
    let len = match rng.u8(..30) {
        0 => len.wrapping_add(1),
        1 => len.wrapping_sub(1),
        2 => *pick(rng, &[0, 7, 8, 27, 28, 0xffff]),
        _ => len,
    };
    let checksum = if chance(rng, 5) { rng.u16(..) } else { 0 };
    let datagram = udp([rng.u16(..), port, len, checksum], &payload);
    header(rng, source, destination, 17, datagram, Outer)
}

/// A packet that a peer has in its tunnel, in most cases from its own address to a local one.
fn from_peer(rng: &mut Rng, peer: &Peer) -> Vec<u8> {
    let own = match peer.internal_ip {
        Some(address) if chance(rng, 20) => address,
        _ => peer.pod(),
    };
    let source = if chance(rng, 85) {
        own
    } else {
        any_address(rng)
    };
    let destination = match rng.u8(..10) {
        0..6 => POD,
        6 => LIMITED,
        7..9 => OWN,
        _ => any_address(rng),
    };
    packet(rng, source, destination)
}

/// What a pod or the host sends.
fn leaving(rng: &mut Rng, own: Addr) -> Vec<u8> {
    let source = if own == OWN || chance(rng, 90) {
        own
    } else {
        any_address(rng)
    };
    let destination = match rng.u8(..4) {
        0 => any_address(rng),
        1 => *pick(rng, &[POD_2, LIMITED, OWN]),
        _ => pick(rng, &PEERS).pod(),
    };
    if chance(rng, 5) {
        let inner = packet(rng, POD_2, POD);
        let payload = datagram(rng.u16(..), DEFAULT_UDP_PORT, &inner);
        return header(rng, source, destination, 17, payload, Inner);
    }
    packet(rng, source, destination)
}

/// A packet of the usual protocols.
fn packet(rng: &mut Rng, source: Addr, destination: Addr) -> Vec<u8> {
    let data = match rng.u8(..12) {
        0 => rng.usize(..LONGEST),
        1 => *pick(rng, &[1408, 1439, 1440, 1441, 1452, 1453, 1460, 1461, 1480]),
        _ => rng.usize(..80),
    };
    let data = vec![rng.u8(..); data];
    let (protocol, payload) = match rng.u8(..20) {
        0..8 => (6, tcp(rng, &data)),
        8..12 => (17, datagram(rng.u16(..), rng.u16(..), &data)),
        12..14 => (1, [&[8, 0, 0, 0, 0, 1, 0, 1], &data[..]].concat()),
        14..16 => (1, icmp_error(rng, source, destination)),
        16 => (132, data),
        17 => (*pick(rng, &[4, 41, 47]), data),
        18 => (*pick(rng, &[50, 2, 112, 0, 255]), data),
        _ => (17, data),
    };
    header(rng, source, destination, protocol, payload, Inner)
}

fn tcp(rng: &mut Rng, data: &[u8]) -> Vec<u8> {
    let mut segment: Vec<u8> = (0..20).map(|_| rng.u8(..)).collect();
    segment[12] = *pick(rng, &[5, 5, 5, 8, 15, 0]) << 4;
    if chance(rng, 20) {
        syn(rng, &mut segment);
    }
    segment.extend(data);
    segment
}

/// Makes the header that of a SYN with options, of which one may be malformed.
fn syn(rng: &mut Rng, segment: &mut Vec<u8>) {
    segment[13] |= 2;
    let mut options = Vec::new();
    while chance(rng, 80) && options.len() < 30 {
        let [high, low] = pick(rng, &[1460_u16, 1441, 1440, 1439, 536, 8960, 0xffff]).to_be_bytes();
        options.extend(match rng.u8(..12) {
            0..5 => vec![2, 4, high, low],
            5..8 => vec![1],
            8 => vec![3, 3, 7],
            9 => vec![8, 10, 1, 2, 3, 4, 0, 0, 0, 0],
            10 => vec![0],
            _ => vec![rng.u8(..4), rng.u8(..8), high, low],
        });
    }
    options.resize(options.len().next_multiple_of(4), rng.u8(..2));
    segment[12] = (5 + options.len() as u8 / 4) << 4;
    segment.extend(options);
}

pub fn datagram(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    udp([source, destination, data.len() as u16 + 8, 0], data)
}

/// A datagram with these fields: the ports, the length and the checksum.
fn udp(fields: [u16; 4], data: &[u8]) -> Vec<u8> {
    let header: Vec<u8> = fields.into_iter().flat_map(u16::to_be_bytes).collect();
    [&header, data].concat()
}

/// An error that quotes a packet of the other direction: whole, cut, or not a packet at all.
fn icmp_error(rng: &mut Rng, source: Addr, destination: Addr) -> Vec<u8> {
    let kind = *pick(rng, &[3, 3, 11, 12, 4, 5]);
    let mut error = vec![kind, rng.u8(..6), 0, 0, 0, 0, 5, 0];
    let port = match rng.bool() {
        true => DEFAULT_UDP_PORT,
        false => rng.u16(..),
    };
    let payload = datagram(rng.u16(..), port, &[7; 40]);
    let protocol = *pick(rng, &[6, 17, 1, 4]);
    let mut quote = header(rng, destination, source, protocol, payload, Inner);
    match rng.u8(..4) {
        0 => quote.truncate(rng.usize(..quote.len())),
        1 => quote[0] = rng.u8(..),
        _ => {}
    }
    error.extend(quote);
    error
}

/// The error of a router, or of anybody, about a tunnel packet of this node.
fn about_a_tunnel_packet(rng: &mut Rng, source: Addr) -> Vec<u8> {
    let [from, to] = [0; 2].map(|_| any_address(rng));
    let own = *pick(rng, &[OWN, OWN, ON_UPLINK, from]);
    let peer = pick(rng, &PEERS).underlay().unwrap_or(to);
    let peer = *pick(rng, &[peer, peer, to]);
    let mut error = icmp_error(rng, peer, own);
    if rng.bool() {
        error[..2].copy_from_slice(&[3, 4]);
    }
    header(rng, source, own, 1, error, Inner)
}

/// The place of a header, which decides how often it reports congestion.
#[derive(Clone, Copy)]
pub enum Place {
    Outer,
    Inner,
}
use Place::{Inner, Outer};

/// Puts an IPv4 header before the payload, in which a field is unusual at times.
pub fn header(
    rng: &mut Rng,
    source: Addr,
    destination: Addr,
    protocol: u8,
    payload: Vec<u8>,
    place: Place,
) -> Vec<u8> {
    let words = if chance(rng, 4) { rng.usize(1..=10) } else { 0 };
    let len = 20 + words * 4;
    let mut packet = vec![0; len];
    packet[0] = 0x40 | (len / 4) as u8;
    packet[1] = match place {
        // Congestion is rare, but each combination appears.
        Outer if chance(rng, 80) => rng.u8(..) & !3 | rng.u8(..3),
        _ => rng.u8(..),
    };
    packet[2..4].copy_from_slice(&((len + payload.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&rng.u16(..).to_be_bytes());
    let fragment: u16 = match rng.u8(..40) {
        0 => 0x2000,
        1 => rng.u16(1..0x2000),
        2 => rng.u16(..),
        3..20 => 0,
        _ => 0x4000,
    };
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = if chance(rng, 5) {
        *pick(rng, &[0, 1, 2, 255])
    } else {
        64
    };
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source.0);
    packet[16..20].copy_from_slice(&destination.0);
    for option in &mut packet[20..] {
        *option = *pick(rng, &[0, 1, 7, 0x83, 0x89, 0x44, 0x94, 4, 255]);
    }
    fill_checksum(&mut packet, len);
    packet.extend(payload);
    packet
}

/// Damages a packet at a place that a program reads: a bit, a field, a length, its end.
fn damage(rng: &mut Rng, packet: &mut Vec<u8>) {
    while chance(rng, 25) {
        // The outer header, or one inside it.
        let starts = [0, 20, 28].map(|at| if at + 20 <= packet.len() { at } else { 0 });
        let start = *pick(rng, &starts);
        match rng.u8(..8) {
            0 => packet.truncate(rng.usize(20..=packet.len())),
            1 => {
                let len = rng.usize(1..60);
                packet.extend(vec![rng.u8(..); len]);
            }
            2 => {
                let at = rng.usize(..packet.len().min(80));
                packet[at] ^= 1 << rng.u8(..8);
            }
            3 => {
                let at = rng.usize(..packet.len().min(80));
                packet[at] = rng.u8(..);
            }
            // Lengths at which arithmetic goes wrong.
            4 => {
                let left = (packet.len() - start) as u16;
                let lengths = [
                    0,
                    1,
                    19,
                    20,
                    21,
                    27,
                    28,
                    left - 1,
                    left,
                    left + 1,
                    0x7fff,
                    0xffff,
                ];
                let len: u16 = *pick(rng, &lengths);
                packet[start + 2..start + 4].copy_from_slice(&len.to_be_bytes());
            }
            5 => packet[start] = *pick(rng, &[0x40, 0x44, 0x46, 0x4f, 0x35, 0x55, 0x65, 0]),
            6 => packet[start + 10] ^= 0xff,
            _ => packet[start + 9] = rng.u8(..),
        }
        // In most cases the checksum is right again, so that the packet reaches the later checks.
        if chance(rng, 75) && start + 20 <= packet.len() {
            let len = usize::from(packet[start] & 15) * 4;
            fill_checksum(&mut packet[start..], len.max(20));
            if start > 0 {
                let len = usize::from(packet[0] & 15) * 4;
                fill_checksum(packet, len.max(20));
            }
        }
    }
}

/// ARP from a pod.
fn arp(rng: &mut Rng) -> Case {
    let mac = |rng: &mut Rng| match rng.u8(..8) {
        0 => [0; 6],
        1 => [0xff; 6],
        2 => [1, 0, 0x5e, 0, 0, 1],
        3 => [2, 0xdd, 0, 0, 0, 9],
        _ => POD_MAC.0,
    };
    let address = |rng: &mut Rng| match rng.u8(..5) {
        0 => POD_GATEWAY,
        1 => Addr::ZERO,
        2 => any_address(rng),
        _ => POD,
    };
    let mut frame = vec![0xff; 6];
    frame.extend(mac(rng));
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, if rng.bool() { 1 } else { 2 }]);
    for _ in 0..2 {
        frame.extend(mac(rng));
        frame.extend(address(rng).0);
    }
    if chance(rng, 40) {
        frame[38..42].copy_from_slice(&POD_GATEWAY.0);
    }
    match rng.u8(..10) {
        0 => frame.truncate(rng.usize(SHORTEST..=frame.len())),
        1 => {
            let at = rng.usize(14..frame.len());
            frame[at] = rng.u8(..);
        }
        2..6 => frame.resize(60, 0),
        _ => {}
    }
    Case {
        program: Program::FromPod,
        frame,
        gso_size: 0,
        foreign_ipip: false,
    }
}
