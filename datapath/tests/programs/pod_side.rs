//! Packets that a pod sends, and packets that the host routes into `ipip0`.

use crate::{
    fixture::*,
    packets::{ICMP, Ip, frame},
};
use ipip_abi::{
    Counter, DEFAULT_UDP_PORT, DropReason, Program,
    wire::{PROTO_GRE, PROTO_IPIP, PROTO_IPV6},
};

#[test]
fn a_packet_of_a_pod_with_a_foreign_source_is_dropped() {
    let node = Node::new();
    // Another pod of this node, no pod, a remote pod, this node, another node, the Internet, 0.0.0.0.
    for source in [POD_2, NO_POD, B_POD, OWN, B_INTERNAL, "8.8.8.8", "0.0.0.0"] {
        for destination in [B_POD, POD_2, "8.8.8.8"] {
            let packet = Ip::tcp(source, 40_000, destination, 80);
            node.from_pod(&packet)
                .is_dropped(DropReason::PodSourceSpoofed);
        }
    }
}

#[test]
fn a_packet_of_a_pod_with_a_tunnel_protocol_to_a_node_is_dropped() {
    let node = Node::new();
    for protocol in [PROTO_IPIP, PROTO_IPV6, PROTO_GRE] {
        for destination in [OWN, B, B_INTERNAL, C, D] {
            let packet = Ip::new(POD, destination, protocol).payload([0; 40]);
            node.from_pod(&packet)
                .is_dropped(DropReason::PodSendsTunnel);
        }
    }
}

#[test]
fn a_packet_of_a_pod_to_the_tunnel_port_of_a_node_is_dropped() {
    let node = Node::new();
    let inner = Ip::tcp(POD_2, 1, C_POD, 80).bytes();
    for destination in [OWN, B, B_INTERNAL, C, D] {
        let packet = Ip::udp(POD, 50_000, destination, DEFAULT_UDP_PORT, &inner);
        node.from_pod(&packet)
            .is_dropped(DropReason::PodSendsTunnel);
        node.from_pod(&packet.clone().options())
            .is_dropped(DropReason::PodSendsTunnel);
        node.from_pod(&packet.more_fragments())
            .is_dropped(DropReason::PodSendsTunnel);
    }
    let packet = Ip::udp(POD, 50_000, B_POD, DEFAULT_UDP_PORT, &inner);
    node.from_pod(&packet).is(REDIRECT, &[Counter::PodToTunnel]);
}

#[test]
fn a_packet_of_a_pod_with_a_tunnel_protocol_to_a_remote_pod_is_dropped() {
    let node = Node::new();
    for protocol in [PROTO_IPIP, PROTO_IPV6, PROTO_GRE] {
        let packet = Ip::new(POD, B_POD, protocol).payload([0; 40]);
        node.from_pod(&packet).is_dropped(DropReason::NestedTunnel);
    }
}

#[test]
fn a_pod_may_tunnel_to_the_internet_and_to_a_pod_of_its_node() {
    let node = Node::new();
    let outside = Ip::new(POD, "8.8.8.8", 47).payload([0; 40]);
    node.from_pod(&outside).is(PASS, &[Counter::PodToStack]);
    let neighbour = Ip::new(POD, POD_2, 47).payload([0; 40]);
    node.from_pod(&neighbour).is(REDIRECT, &[Counter::PodToPod]);
}

#[test]
fn a_packet_of_a_pod_that_is_neither_ipv4_nor_arp_is_dropped() {
    let node = Node::new();
    let mut other = frame(&[0; 40]);
    other[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.run_frame(Program::FromPod, &other)
        .is_dropped(DropReason::PodNotIpv4);
    let mut wrong_version = Ip::tcp(POD, 1, B_POD, 80).bytes();
    wrong_version[0] = 0x65;
    node.run(Program::FromPod, &wrong_version)
        .is_dropped(DropReason::PodNotIpv4);
}

#[test]
fn a_pod_of_the_same_node_gets_the_packet_with_a_decremented_ttl() {
    let node = Node::new();
    let packet = Ip::tcp(POD, 40_000, POD_2, 80);
    let outcome = node.from_pod(&packet);
    outcome.is(REDIRECT, &[Counter::PodToPod]);
    assert_eq!(outcome.packet(), packet.ttl(63).bytes());
    assert_eq!(outcome.frame[0..6], POD_MAC.0);
    assert_eq!(outcome.frame[6..12], POD_HOST_MAC.0);
}

#[test]
fn a_packet_to_neither_a_pod_nor_a_peer_goes_to_the_host_stack_unchanged() {
    let node = Node::new();
    for destination in ["8.8.8.8", "10.96.0.1", OWN, "169.254.1.1", NO_POD] {
        let packet = Ip::tcp(POD, 40_000, destination, 80);
        let outcome = node.from_pod(&packet);
        outcome.is(PASS, &[Counter::PodToStack]);
        assert_eq!(outcome.packet(), packet.bytes());
    }
}

#[test]
fn a_packet_whose_ttl_expires_goes_to_the_host_stack_which_answers() {
    let node = Node::new();
    for ttl in [0, 1] {
        let packet = Ip::tcp(POD, 40_000, B_POD, 80).ttl(ttl);
        node.from_pod(&packet).is(PASS, &[Counter::TtlToStack]);
    }
}

#[test]
fn a_packet_larger_than_the_paths_mtu_goes_to_the_host_stack_which_answers() {
    let node = Node::new();
    let fits = Ip::new(POD, B_POD, ICMP).payload(vec![0; usize::from(PATH_MTU) - 20]);
    node.from_pod(&fits).is(REDIRECT, &[Counter::PodToTunnel]);
    let larger = Ip::new(POD, B_POD, ICMP).payload(vec![0; usize::from(PATH_MTU) - 19]);
    node.from_pod(&larger).is(PASS, &[Counter::OversizeToStack]);
}

#[test]
fn fragments_take_the_host_stack() {
    let node = Node::new();
    for destination in [B_POD, POD_2] {
        let packet = Ip::udp(POD, 1, destination, 2, b"data");
        node.from_pod(&packet.clone().more_fragments())
            .is(PASS, &[Counter::FragmentToStack]);
        node.from_pod(&packet.fragment_offset(4))
            .is(PASS, &[Counter::FragmentToStack]);
    }
}

#[test]
fn a_peer_without_a_path_is_unreachable() {
    let node = Node::new();
    let packet = Ip::tcp(POD, 40_000, E_POD, 80);
    let outcome = node.from_pod(&packet);
    assert_eq!(outcome.verdict, DROP);
    assert!(
        outcome
            .moved
            .contains_key(DropReason::PeerUnreachable.name())
    );
    let packet = Ip::tcp(OWN, 40_000, E_POD, 80);
    let outcome = node.from_host(&packet);
    assert_eq!(outcome.verdict, DROP);
    assert!(
        outcome
            .moved
            .contains_key(DropReason::PeerUnreachable.name())
    );
}

#[test]
fn a_packet_that_the_host_routes_to_no_peer_is_dropped() {
    let node = Node::new();
    for destination in ["8.8.8.8", POD, NO_POD] {
        let packet = Ip::tcp(OWN, 40_000, destination, 80);
        node.from_host(&packet).is_dropped(DropReason::NoRoute);
    }
    let mut other = frame(&[0; 40]);
    other[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.run_frame(Program::FromHost, &other)
        .is_dropped(DropReason::NoRoute);
}
