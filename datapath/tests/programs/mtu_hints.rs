//! ICMP `fragmentation needed` about tunnel packets of this node: what is remembered, and what is not.

use crate::{
    fixture::*,
    packets::{ICMP, Ip, TCP},
};
use ipip_abi::{Counter, DEFAULT_UDP_PORT, DropReason, MtuHint, NodeAddr, Program};

/// A router between the nodes.
const ROUTER: &str = "198.51.100.1";
/// Type and code.
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];

/// The message that states `mtu` and quotes the first 28 bytes of a packet, or fewer.
fn message(type_and_code: [u8; 2], mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let mut message = type_and_code.to_vec();
    message.extend([0; 4]);
    message.extend(mtu.to_be_bytes());
    message.extend(&quoted[..quoted.len().min(28)]);
    message
}

fn error(mtu: u16, quoted: &[u8]) -> Ip {
    Ip::new(ROUTER, OWN, ICMP).payload(message(FRAGMENTATION_NEEDED, mtu, quoted))
}

/// A large packet of a pod.
fn inner(destination: &str) -> Vec<u8> {
    Ip::udp(POD, 1, destination, 2, &[7; 1400]).bytes()
}

fn hint(node: &Node, peer: u32) -> MtuHint {
    node.maps.mtu_hints.get(&peer, 0).unwrap()
}

/// Asserts that the packet is only passed to the host.
#[track_caller]
fn is_no_hint(node: &Node, packet: &Ip) {
    let outcome = node.from_uplink(packet);
    outcome.is(PASS, &[]);
    assert_eq!(outcome.packet(), packet.bytes());
    for peer in 0..5 {
        assert_eq!(hint(node, peer), MtuHint::default(), "peer {peer}");
    }
}

#[test]
fn an_error_about_a_tunnel_packet_is_remembered_and_passed_to_the_host() {
    let node = Node::new();
    for (peer, quoted) in [
        (1, ipip(OWN, B, &inner(B_POD))),
        (2, fou(OWN, C, &inner(C_POD))),
        // Also the path that was in use before, and one that is only probed.
        (1, fou(OWN, B, &inner(B_POD))),
    ] {
        let mut last = hint(&node, peer).at_ns;
        for mtu in [1400, 1280, 0, u16::MAX] {
            let packet = error(mtu, &quoted);
            let outcome = node.from_uplink(&packet);
            outcome.is(PASS, &[Counter::MtuHint]);
            assert_eq!(outcome.packet(), packet.bytes());
            let MtuHint {
                at_ns, mtu: stated, ..
            } = hint(&node, peer);
            assert!(at_ns > last);
            assert_eq!(stated, mtu);
            last = at_ns;
        }
    }
    for peer in [0, 3, 4] {
        assert_eq!(hint(&node, peer), MtuHint::default());
    }
    // Nobody believes it.
    for peer in [1, 2] {
        assert_eq!(node.maps.peers.get(&peer, 0).unwrap().mtu, PATH_MTU);
    }
}

#[test]
fn an_error_to_an_address_that_nat_translates_is_remembered() {
    let mut node = Node::new();
    let own = "10.0.0.99";
    let roles = NodeAddr::new(0, NodeAddr::OWN | NodeAddr::TUNNEL_ONLY);
    node.maps.node_addrs.insert(addr(own), roles, 0).unwrap();
    let message = message(FRAGMENTATION_NEEDED, 1400, &ipip(own, B, &inner(B_POD)));
    node.from_uplink(&Ip::new(ROUTER, own, ICMP).payload(message))
        .is(PASS, &[Counter::MtuHint]);
    assert_eq!(hint(&node, 1).mtu, 1400);
}

#[test]
fn an_error_behind_ip_options_is_remembered() {
    let node = Node::new();
    let packet = error(1400, &ipip(OWN, B, &inner(B_POD))).options();
    node.from_uplink(&packet).is(PASS, &[Counter::MtuHint]);
    assert_eq!(hint(&node, 1).mtu, 1400);
}

#[test]
fn an_error_about_a_packet_of_other_nodes_is_no_hint() {
    let node = Node::new();
    let inner = inner(B_POD);
    for wrap in WRAPS {
        for (source, destination) in [
            // Not from this node.
            (STRANGER, B),
            (B, C),
            (POD, B),
            ("0.0.0.0", B),
            // Not to the underlay address of a peer.
            (OWN, STRANGER),
            (OWN, B_INTERNAL),
            (OWN, B_POD),
            (OWN, OWN),
        ] {
            is_no_hint(&node, &error(1400, &wrap(source, destination, &inner)));
        }
    }
}

#[test]
fn an_error_about_another_packet_of_this_node_is_no_hint() {
    let node = Node::new();
    for quoted in [
        Ip::tcp(OWN, 1, B, 443),
        Ip::new(OWN, B, ICMP).payload([8; 64]),
        Ip::new(OWN, B, 47).payload([0; 64]),
        Ip::udp(OWN, DEFAULT_UDP_PORT, B, 53, &[0; 64]),
        Ip::udp(OWN, 50_000, B, DEFAULT_UDP_PORT + 1, &[0; 64]),
        // No node sends options in an outer header.
        Ip::new(OWN, B, 4).payload([0; 64]).options(),
    ] {
        is_no_hint(&node, &error(1400, &quoted.bytes()));
    }
}

#[test]
fn other_messages_and_malformed_ones_are_no_hints() {
    let node = Node::new();
    let quoted = ipip(OWN, B, &inner(B_POD));
    for type_and_code in [
        [3, 0],
        [3, 3],
        [3, 13],
        [11, 0],
        [12, 4],
        [5, 4],
        [8, 0],
        [0, 4],
        [4, 3],
    ] {
        let message = message(type_and_code, 1400, &quoted);
        is_no_hint(&node, &Ip::new(ROUTER, OWN, ICMP).payload(message));
    }
    for len in 1..24 {
        is_no_hint(&node, &error(1400, &quoted[..len]));
    }
    let whole = error(1400, &quoted);
    is_no_hint(&node, &whole.clone().more_fragments());
    is_no_hint(&node, &whole.fragment_offset(1));
    let message = message(FRAGMENTATION_NEEDED, 1400, &quoted);
    is_no_hint(&node, &Ip::new(ROUTER, OWN, TCP).payload(message));
}

/// What comes through a tunnel is of a peer, and says nothing about the path to it.
#[test]
fn an_error_inside_a_tunnel_or_of_a_pod_is_no_hint() {
    let node = Node::new();
    let message = message(FRAGMENTATION_NEEDED, 1400, &ipip(OWN, B, &inner(B_POD)));
    let inside = Ip::new(B_POD, OWN, ICMP).payload(message);
    node.from_b(&inside).is(REDIRECT, &[Counter::TunnelToHost]);
    node.run(Program::FromUplink, &inside.bytes())
        .is_dropped(DropReason::UnencapsulatedPodSource);
    assert_eq!(hint(&node, 1), MtuHint::default());
}
