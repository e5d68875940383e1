//! GSO packets that the kernel cannot encapsulate whole.

use crate::{
    fixture::*,
    packets::{Ip, frame},
};
use ipip_abi::{Counter, DropReason, Program, wire::PROTO_SCTP};

/// A packet of many segments, whose size is that of the first.
fn packet(source: &str, destination: &str) -> Vec<u8> {
    Ip::new(source, destination, PROTO_SCTP)
        .payload([7; 1200])
        .bytes()
}

#[test]
fn a_pods_gso_packet_of_another_type_than_tcp_and_udp_goes_unchanged_to_the_host_stack() {
    let node = Node::new();
    for destination in [B_POD, C_POD] {
        let packet = packet(POD, destination);
        let outcome = node.run_gso(Program::FromPod, &packet, 500);
        outcome.is(PASS, &[Counter::LargeSegmented]);
        assert_eq!(outcome.frame, frame(&packet), "{destination}");
    }
}

#[test]
fn the_host_stacks_gso_packet_of_another_type_goes_on_to_be_segmented() {
    let node = Node::new();
    for destination in [B_POD, C_POD] {
        let packet = packet(OWN, destination);
        let outcome = node.run_gso(Program::FromHost, &packet, 500);
        outcome.is(PASS, &[Counter::LargeSegmented]);
        assert_eq!(outcome.frame, frame(&packet), "{destination}");
    }
}

#[test]
fn a_segment_is_encapsulated_at_the_far_end_of_ipip0() {
    let node = Node::new();
    node.from_far_end(&Ip::new(POD, B_POD, PROTO_SCTP).payload([7; 500]))
        .is(REDIRECT, &[Counter::HostToTunnel]);
    node.from_far_end(&Ip::tcp(POD, 1, "8.8.8.8", 80))
        .is_dropped(DropReason::NoRoute);
    let mut other = frame(&[0; 40]);
    other[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.run_frame(Program::FromFarEnd, &other)
        .is_dropped(DropReason::NoRoute);
}

/// Somebody turned the offloads of `ipip0` on.
#[test]
fn a_packet_that_is_still_whole_at_the_far_end_is_dropped() {
    let node = Node::new();
    let outcome = node.run_gso(Program::FromFarEnd, &packet(OWN, B_POD), 500);
    assert_eq!(outcome.verdict, DROP);
    let moved = [
        Counter::LargeSegmented.name(),
        DropReason::RewriteFailed.name(),
    ];
    assert!(outcome.moved.keys().eq(moved.iter()), "{:?}", outcome.moved);
}

/// Otherwise the kernel of the receiver takes the inner UDP header for that of the tunnel.
#[test]
fn datagrams_in_one_gso_packet_are_segmented_before_they_are_encapsulated_in_udp() {
    let node = Node::new();
    let packet = Ip::udp(POD, 5000, C_POD, 443, &[7; 1200]).bytes();
    node.run_gso(Program::FromPod, &packet, 500)
        .is(PASS, &[Counter::LargeSegmented]);
}
