//! The headers of encapsulated packets, and that decapsulation restores the inner packet.

use crate::{
    fixture::*,
    packets::{Ip, checksum},
};
use ipip_abi::{Counter, DEFAULT_UDP_PORT, Program};
use ipip_datapath::next_hops_until;
use std::time::Duration;

/// DSCP 46 (EF) and ECT(0).
const TOS: u8 = 46 << 2 | 2;

#[test]
fn ipip_has_the_outer_header_of_rfc_2003() {
    let node = Node::new();
    let inner = Ip::tcp(POD, 40_000, B_POD, 80).tos(TOS);
    let outcome = node.from_pod(&inner);
    outcome.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(outcome.frame[0..6], NEXT_HOP_MAC.0);
    assert_eq!(outcome.frame[6..12], UPLINK_MAC.0);
    let packet = outcome.packet();
    assert_eq!(packet[0], 0x45);
    assert_eq!(
        packet[1], TOS,
        "DSCP and ECN are copied (RFC 2983, RFC 6040)"
    );
    assert_eq!(packet[2..4], 60_u16.to_be_bytes());
    assert_eq!(packet[6] & 0x40, 0x40, "DF");
    assert_eq!(packet[9], 4);
    assert_eq!(packet[12..16], addr(OWN).0);
    assert_eq!(packet[16..20], addr(B).0);
    assert_eq!(checksum(&packet[..20]), 0);
    assert_eq!(
        packet[20..],
        inner.ttl(63).bytes(),
        "only the time to live is decremented"
    );
    let traffic = node.maps.traffic(1).unwrap();
    assert_eq!((traffic.tx_packets, traffic.bytes.sent()), (1, 60));
}

#[test]
fn udp_has_the_same_outer_header_and_a_udp_header() {
    let node = Node::new();
    let inner = Ip::tcp(POD, 40_000, C_POD, 80).tos(TOS);
    let outcome = node.from_pod(&inner);
    outcome.is(
        REDIRECT,
        &[Counter::PodToTunnel, Counter::NeighbourFallback],
    );
    let packet = outcome.packet();
    assert_eq!(packet[1], TOS);
    assert_eq!(packet[2..4], 68_u16.to_be_bytes());
    assert_eq!(packet[9], 17);
    assert_eq!(packet[16..20], addr(C).0);
    assert_eq!(checksum(&packet[..20]), 0);
    let source_port = u16::from_be_bytes([packet[20], packet[21]]);
    assert!(source_port >= 0xc000, "{source_port} is not ephemeral");
    assert_eq!(packet[22..24], DEFAULT_UDP_PORT.to_be_bytes());
    assert_eq!(packet[24..26], 48_u16.to_be_bytes());
    assert_eq!(packet[26..28], [0, 0]);
    assert_eq!(packet[28..], inner.ttl(63).bytes());
}

#[test]
fn flows_spread_over_udp_source_ports_and_a_flow_keeps_its_port() {
    let node = Node::new();
    let port = |source: u16| {
        let outcome = node.from_pod(&Ip::tcp(POD, source, C_POD, 80));
        u16::from_be_bytes([outcome.packet()[20], outcome.packet()[21]])
    };
    let ports: std::collections::HashSet<u16> = (0..64).map(|flow| port(40_000 + flow)).collect();
    assert!(ports.len() > 48, "64 flows use only {} ports", ports.len());
    assert_eq!(port(40_000), port(40_000));
}

#[test]
fn direct_adds_no_header() {
    let node = Node::new();
    let packet = Ip::tcp(POD, 40_000, D_POD, 80);
    let outcome = node.from_pod(&packet);
    outcome.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(outcome.packet(), packet.ttl(63).bytes());
    assert_eq!(outcome.frame[0..6], NEXT_HOP_MAC.0);
}

#[test]
fn the_ttl_of_a_packet_from_the_host_stack_is_not_decremented_again() {
    let node = Node::new();
    let inner = Ip::tcp(OWN, 40_000, B_POD, 80);
    let outcome = node.from_host(&inner);
    outcome.is(REDIRECT, &[Counter::HostToTunnel]);
    assert_eq!(outcome.packet()[20..], inner.bytes());
}

#[test]
fn decapsulation_restores_the_inner_packet_with_a_decremented_ttl() {
    let node = Node::new();
    for wrap in WRAPS {
        for payload in [0, 1, 1000] {
            let inner = Ip::udp(B_POD, 1, POD, 2, &vec![7; payload]).tos(TOS);
            let outcome = node.run(Program::FromUplink, &wrap(B, OWN, &inner.bytes()));
            outcome.is(REDIRECT, &[Counter::TunnelToPod]);
            assert_eq!(outcome.packet(), inner.ttl(63).bytes());
            assert_eq!(outcome.frame[0..6], POD_MAC.0);
            assert_eq!(outcome.frame[6..12], POD_HOST_MAC.0);
        }
    }
}

#[test]
fn a_header_with_options_stays_unchanged_both_ways() {
    let node = Node::new();
    let inner = Ip::udp(POD, 1, B_POD, 2, b"data").options();
    let outcome = node.from_pod(&inner);
    outcome.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(outcome.packet()[20..], inner.ttl(63).bytes());
    let inner = Ip::udp(B_POD, 1, POD, 2, b"data").options();
    assert_eq!(node.from_b(&inner).packet(), inner.ttl(63).bytes());
}

/// The unit of the time is at most ten seconds.
#[test]
fn the_next_hops_mac_is_used_until_the_time_that_the_agent_wrote() {
    const MINUTE: Duration = Duration::from_secs(60);
    let mut node = Node::new();
    let now = next_hops_until(Duration::ZERO).unwrap();
    let later = next_hops_until(MINUTE).unwrap();
    assert!((6..=60).contains(&(later - now)), "{now} to {later}");
    let packet = Ip::tcp(POD, 40_000, B_POD, 80);
    for (until, is_used) in [(later, true), (now + 2, true), (now - 2, false), (0, false)] {
        node.maps.next_hops_until.set(0, until, 0).unwrap();
        let counters: &[Counter] = match is_used {
            true => &[Counter::PodToTunnel],
            false => &[Counter::PodToTunnel, Counter::NeighbourFallback],
        };
        node.from_pod(&packet).is(REDIRECT, counters);
    }
}
