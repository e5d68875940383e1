//! Pods with limited bandwidth: their packets take the host stack, whose qdiscs limit them.

use crate::{
    fixture::*,
    packets::{ICMP, Ip},
};
use ipip_abi::{
    Counter, DropReason, Pod,
    wire::{PROTO_GRE, PROTO_IPIP, PROTO_IPV6},
};

/// The fixture's node, on which this pod is limited.
fn node_with_limited(pod: &str) -> Node {
    let mut node = Node::new();
    let entry = node.maps.pods.get(&addr(pod), 0).unwrap();
    let flags = Pod::HOST_STACK;
    let entry = Pod { flags, ..entry };
    node.maps.pods.insert(addr(pod), entry, 0).unwrap();
    node
}

#[test]
fn packets_of_a_limited_pod_take_the_host_stack() {
    let node = node_with_limited(POD);
    for destination in [B_POD, C_POD, D_POD, B_INTERNAL, POD_2] {
        node.from_pod(&Ip::tcp(POD, 40_000, destination, 80))
            .is(PASS, &[Counter::LimitedToStack]);
    }
    let large = Ip::udp(POD, 1, B_POD, 2, &[7; PATH_MTU as usize]);
    node.from_pod(&large).is(PASS, &[Counter::LimitedToStack]);
    // Packets without a fast path are counted as for any other pod.
    node.from_pod(&Ip::tcp(POD, 40_000, "8.8.8.8", 80))
        .is(PASS, &[Counter::PodToStack]);
    node.from_pod(&Ip::tcp(POD, 40_000, B_POD, 80).ttl(1))
        .is(PASS, &[Counter::TtlToStack]);
    node.from_pod(&Ip::udp(POD, 1, B_POD, 2, b"x").more_fragments())
        .is(PASS, &[Counter::FragmentToStack]);
}

#[test]
fn the_checks_of_packets_from_a_limited_pod_are_those_of_any_other_pod() {
    let node = node_with_limited(POD);
    node.from_pod(&Ip::tcp(NO_POD, 40_000, B_POD, 80))
        .is_dropped(DropReason::PodSourceSpoofed);
    for protocol in [PROTO_IPIP, PROTO_IPV6, PROTO_GRE] {
        let packet = Ip::new(POD, B_POD, protocol).payload([0; 40]);
        node.from_pod(&packet).is_dropped(DropReason::NestedTunnel);
        let packet = Ip::new(POD, B, protocol).payload([0; 40]);
        node.from_pod(&packet)
            .is_dropped(DropReason::PodSendsTunnel);
    }
}

#[test]
fn packets_to_a_limited_pod_are_delivered_to_the_host() {
    let node = node_with_limited(POD);
    let tunnelled = node.from_b(&Ip::tcp(B_POD, 80, POD, 40_000));
    let direct = node.from_uplink(&Ip::tcp(D_POD, 80, POD, 40_000));
    for outcome in [tunnelled, direct] {
        outcome.is(REDIRECT, &[Counter::LimitedToStack]);
        assert_eq!(outcome.frame[0..6], IPIP0_MAC.0);
        assert_eq!(outcome.frame[14], 0x45, "without an outer header");
        assert_eq!(outcome.packet()[9], 6, "without an outer header");
    }
    node.from_b(&Ip::tcp(C_POD, 80, POD, 40_000))
        .is_dropped(DropReason::InnerSourceNotOfPeer);
}

#[test]
fn what_a_pod_of_the_same_node_sends_to_a_limited_one_takes_the_host_stack() {
    let node = node_with_limited(POD_2);
    node.from_pod(&Ip::tcp(POD, 40_000, POD_2, 80))
        .is(PASS, &[Counter::LimitedToStack]);
    // All other packets stay on the fast path.
    node.from_pod(&Ip::tcp(POD, 40_000, B_POD, 80))
        .is(REDIRECT, &[Counter::PodToTunnel]);
    node.from_b(&Ip::tcp(B_POD, 80, POD, 40_000))
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn both_directions_of_a_limited_pods_flow_take_the_stack_whichever_end_began() {
    let node = node_with_limited(POD);
    // Packets that the stack forwards, in both directions.
    let there = Ip::tcp(POD, 40_000, B_POD, 80);
    let back = Ip::tcp(B_POD, 80, POD, 40_000);
    node.from_host(&there)
        .is(REDIRECT, &[Counter::HostToTunnel, Counter::FlowRecorded]);
    node.to_pod(&back).is(PASS, &[]);
    for _ in 0..2 {
        node.from_pod(&there).is(PASS, &[Counter::LimitedToStack]);
        node.from_b(&back).is(REDIRECT, &[Counter::LimitedToStack]);
    }
    // An ICMP error that quotes the flow takes the stack too.
    let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
    message.extend(&there.bytes()[..28]);
    let error = Ip::new(B_POD, POD, ICMP).payload(message);
    node.from_b(&error).is(REDIRECT, &[Counter::LimitedToStack]);
}
