//! Packets that arrive on an uplink: each attack or malformed packet, and valid packets.

use crate::{
    fixture::*,
    packets::{ICMP, Ip, frame, patched},
};
use ipip_abi::{
    Config, Counter, DEFAULT_UDP_PORT, DropReason, NodeAddr, Program,
    wire::{PROTO_GRE, PROTO_ICMP, PROTO_IPIP, PROTO_IPV6},
};

/// A valid packet from peer B to our pod.
fn good() -> Ip {
    Ip::tcp(B_POD, 40_000, POD, 80)
}

#[test]
fn a_valid_packet_is_delivered_in_both_encapsulations() {
    let node = Node::new();
    for wrap in WRAPS {
        let outcome = node.run(Program::FromUplink, &wrap(B, OWN, &good().bytes()));
        outcome.is(REDIRECT, &[Counter::TunnelToPod]);
    }
    let traffic = node.maps.traffic(1).unwrap();
    assert_eq!((traffic.rx_packets, traffic.bytes.received()), (2, 60 + 68));
}

#[test]
fn a_tunnel_packet_from_no_peer_is_dropped() {
    let node = Node::new();
    for wrap in WRAPS {
        let packet = wrap(STRANGER, OWN, &good().bytes());
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::UnknownPeer);
    }
}

#[test]
fn a_tunnel_packet_from_this_node_is_dropped() {
    let node = Node::new();
    for wrap in WRAPS {
        let packet = wrap(OWN, OWN, &good().bytes());
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::UnknownPeer);
    }
}

#[test]
fn a_tunnel_packet_from_a_removed_peer_is_dropped() {
    let mut node = Node::new();
    node.maps.node_addrs.remove(&addr(B)).unwrap();
    node.from_b(&good()).is_dropped(DropReason::UnknownPeer);
}

#[test]
fn a_tunnel_packet_from_a_peers_address_that_is_not_its_underlay_address_is_dropped() {
    let node = Node::new();
    let packet = ipip(B_INTERNAL, OWN, &good().bytes());
    node.run(Program::FromUplink, &packet)
        .is_dropped(DropReason::UnknownPeer);
}

#[test]
fn protocol_4_from_no_peer_passes_only_if_configured_and_udp_never() {
    let mut node = Node::new();
    node.configure(|config| config.flags = Config::FOREIGN_IPIP_PASS);
    let packet = ipip(STRANGER, OWN, &good().bytes());
    let outcome = node.run(Program::FromUplink, &packet);
    outcome.is(PASS, &[Counter::ForeignIpipPassed]);
    assert_eq!(outcome.packet(), packet);
    let packet = fou(STRANGER, OWN, &good().bytes());
    node.run(Program::FromUplink, &packet)
        .is_dropped(DropReason::UnknownPeer);
}

#[test]
fn a_tunnel_packet_to_another_address_passes_unchanged_and_is_counted() {
    let node = Node::new();
    for wrap in WRAPS {
        let packet = wrap(B, "10.0.0.99", &good().bytes());
        let outcome = node.run(Program::FromUplink, &packet);
        outcome.is(PASS, &[Counter::NotOurTunnelAddress]);
        assert_eq!(outcome.packet(), packet);
    }
}

#[test]
fn a_pod_address_in_the_outer_header_of_another_tunnel_is_dropped() {
    let mut node = Node::new();
    for packet in [
        Ip::udp(STRANGER, 40_000, POD, DEFAULT_UDP_PORT, b"x").bytes(),
        ipip(STRANGER, POD, &good().bytes()),
    ] {
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::UnencapsulatedToPod);
    }
    for packet in [
        Ip::udp(B_POD, 40_000, POD, DEFAULT_UDP_PORT, b"x").bytes(),
        Ip::udp(B_POD, 40_000, "8.8.8.8", DEFAULT_UDP_PORT, b"x").bytes(),
        ipip(B_POD, POD, &good().bytes()),
    ] {
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::UnencapsulatedPodSource);
    }
    // Also if the node passes IP-in-IP packets from no peer.
    node.configure(|config| config.flags = Config::FOREIGN_IPIP_PASS);
    let packet = ipip(B_POD, OWN, &good().bytes());
    node.run(Program::FromUplink, &packet)
        .is_dropped(DropReason::UnencapsulatedPodSource);
    // A direct peer's datagram to the same port number is an ordinary datagram.
    let packet = Ip::udp(D_POD, 40_000, POD, DEFAULT_UDP_PORT, b"x");
    node.from_uplink(&packet)
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn merged_datagrams_of_the_tunnel_are_dropped() {
    let node = Node::new();
    let mut two = good().bytes();
    two.extend(good().bytes());
    node.run(Program::FromUplink, &fou(C, OWN, &two))
        .is_dropped(DropReason::InnerShorterThanDatagram);
}

#[test]
fn an_inner_source_that_does_not_belong_to_the_peer_is_dropped() {
    let node = Node::new();
    for source in [C_POD, POD_2, NO_POD, D, STRANGER, "8.8.8.8"] {
        let inner = Ip::tcp(source, 40_000, POD, 80);
        node.from_b(&inner)
            .is_dropped(DropReason::InnerSourceNotOfPeer);
    }
    // Also this node's own address: no peer may use it.
    let inner = Ip::tcp(OWN, 40_000, POD, 80);
    node.from_b(&inner)
        .is_dropped(DropReason::InnerSourceNotOfPeer);
}

#[test]
fn a_peers_own_internal_ip_is_a_valid_inner_source() {
    let node = Node::new();
    let inner = Ip::tcp(B_INTERNAL, 40_000, POD, 80);
    node.from_b(&inner).is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn an_inner_destination_that_is_not_local_is_dropped() {
    let node = Node::new();
    // Transit to a peer's pod and node, the Internet, a Service, an address without a pod, a pod of B.
    for destination in [C_POD, D, "8.8.8.8", "10.96.0.1", NO_POD, "10.42.2.9"] {
        let inner = Ip::tcp(B_POD, 40_000, destination, 80);
        node.from_b(&inner)
            .is_dropped(DropReason::InnerDestinationNotLocal);
    }
}

#[test]
fn a_packet_for_the_node_itself_goes_to_the_host() {
    let node = Node::new();
    let inner = Ip::tcp(B_POD, 40_000, OWN, 10_250);
    let outcome = node.from_b(&inner);
    outcome.is(REDIRECT, &[Counter::TunnelToHost]);
    // The host routes the packet, so only the outer header is removed.
    assert_eq!(outcome.packet(), inner.bytes());
    assert_eq!(outcome.frame[0..6], IPIP0_MAC.0);
}

#[test]
fn inner_addresses_that_are_never_routed_are_dropped() {
    let node = Node::new();
    for martian in [
        "0.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        let source = Ip::tcp(martian, 40_000, POD, 80);
        node.from_b(&source).is_dropped(DropReason::InnerMartian);
        let destination = Ip::tcp(B_POD, 40_000, martian, 80);
        node.from_b(&destination)
            .is_dropped(DropReason::InnerMartian);
    }
}

#[test]
fn an_inner_source_that_equals_the_destination_is_dropped() {
    let node = Node::new();
    let inner = Ip::tcp(POD, 80, POD, 80);
    node.from_b(&inner)
        .is_dropped(DropReason::InnerSourceIsDestination);
}

#[test]
fn a_tunnel_in_the_tunnel_is_dropped() {
    let node = Node::new();
    for protocol in [PROTO_IPIP, PROTO_IPV6, PROTO_GRE] {
        let inner = Ip::new(B_POD, POD, protocol).payload([0; 40]);
        node.from_b(&inner).is_dropped(DropReason::NestedTunnel);
    }
}

#[test]
fn a_pod_address_as_source_outside_a_tunnel_is_dropped() {
    let node = Node::new();
    for source in [B_POD, C_POD, POD, NO_POD] {
        let packet = Ip::tcp(source, 40_000, OWN, 22);
        node.from_uplink(&packet)
            .is_dropped(DropReason::UnencapsulatedPodSource);
    }
}

#[test]
fn a_pod_address_as_source_outside_a_tunnel_is_valid_if_the_path_is_direct() {
    let node = Node::new();
    let packet = Ip::tcp(D_POD, 40_000, POD, 80);
    node.from_uplink(&packet)
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn a_direct_peers_own_packets_bypass_the_stack_to_pods_and_pass_unchanged_to_the_node() {
    let node = Node::new();
    node.from_uplink(&Ip::tcp(D, 40_000, POD, 80))
        .is(REDIRECT, &[Counter::TunnelToPod]);
    node.from_uplink(&Ip::tcp(D, 40_000, OWN, 22)).is(PASS, &[]);
}

#[test]
fn a_direct_peers_packet_is_validated_as_an_inner_packet() {
    let node = Node::new();
    let transit = Ip::tcp(D_POD, 40_000, C_POD, 80);
    node.from_uplink(&transit)
        .is_dropped(DropReason::InnerDestinationNotLocal);
    let old = Ip::tcp(D_POD, 40_000, POD, 80);
    node.from_uplink(&old.clone().ttl(0))
        .is_dropped(DropReason::TtlExpired);
    node.from_uplink(&old.ttl(1))
        .is(REDIRECT, &[Counter::TtlToStack]);
}

/// Routers between the nodes know no tunnel, so their errors come as they are.
#[test]
fn a_routers_icmp_error_about_a_packet_to_a_direct_peer_reaches_the_pod() {
    const TIME_EXCEEDED: u8 = 11;
    const ECHO_REPLY: u8 = 0;
    let node = Node::new();
    let error = |kind, source, destination| {
        let quoted = Ip::udp(source, 40_000, destination, 33_434, b"").bytes();
        let icmp = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        Ip::new(STRANGER, POD, PROTO_ICMP).payload(icmp)
    };
    let outcome = node.from_uplink(&error(TIME_EXCEEDED, POD, D_POD));
    outcome.is(REDIRECT, &[Counter::TunnelToPod]);
    for other in [
        error(TIME_EXCEEDED, POD, B_POD),
        error(TIME_EXCEEDED, POD, STRANGER),
        error(TIME_EXCEEDED, POD_2, D_POD),
        error(ECHO_REPLY, POD, D_POD),
        error(TIME_EXCEEDED, POD, D_POD).more_fragments(),
    ] {
        node.from_uplink(&other)
            .is_dropped(DropReason::UnencapsulatedToPod);
    }
}

#[test]
fn a_packet_outside_a_tunnel_to_a_local_pod_is_dropped() {
    let node = Node::new();
    for source in [STRANGER, "10.0.0.77", B_INTERNAL] {
        let packet = Ip::tcp(source, 40_000, POD, 80);
        node.from_uplink(&packet)
            .is_dropped(DropReason::UnencapsulatedToPod);
    }
}

#[test]
fn all_other_traffic_passes_unchanged() {
    let node = Node::new();
    let ssh = Ip::tcp(STRANGER, 40_000, OWN, 22);
    let dns = Ip::udp(STRANGER, 53, OWN, 40_000, b"answer");
    let peer = Ip::tcp(D, 40_000, OWN, 6443);
    for packet in [
        ssh,
        dns,
        peer,
        Ip::new(STRANGER, OWN, 47),
        Ip::new(STRANGER, OWN, 50),
    ] {
        let outcome = node.from_uplink(&packet);
        outcome.is(PASS, &[]);
        assert_eq!(outcome.packet(), packet.bytes());
    }
    let mut arp = frame(&[0; 40]);
    arp[12..14].copy_from_slice(&[8, 6]);
    node.run_frame(Program::FromUplink, &arp).is(PASS, &[]);
    arp[12..14].copy_from_slice(&[0x86, 0xdd]);
    node.run_frame(Program::FromUplink, &arp).is(PASS, &[]);
}

#[test]
fn an_inner_version_other_than_4_is_dropped() {
    let node = Node::new();
    for version in [0, 5, 6, 15] {
        let inner = patched(&good().bytes(), 0, version << 4 | 5);
        let packet = ipip(B, OWN, &inner);
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::InnerNotIpv4);
    }
}

#[test]
fn an_inner_header_below_20_bytes_is_dropped() {
    let node = Node::new();
    for ihl in 0..5 {
        let inner = patched(&good().bytes(), 0, 0x40 | ihl);
        let packet = ipip(B, OWN, &inner);
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::InnerHeaderTooShort);
    }
    // A total length below the header's.
    let inner = patched(&good().bytes(), 3, 19);
    let packet = ipip(B, OWN, &inner);
    node.run(Program::FromUplink, &packet)
        .is_dropped(DropReason::InnerHeaderTooShort);
}

#[test]
fn an_inner_total_length_beyond_the_outer_is_dropped() {
    let node = Node::new();
    for wrap in WRAPS {
        for (at, value) in [(3, 41), (3, 255), (2, 0xff)] {
            let inner = patched(&good().bytes(), at, value);
            let packet = wrap(B, OWN, &inner);
            node.run(Program::FromUplink, &packet)
                .is_dropped(DropReason::InnerLengthBeyondOuter);
        }
    }
}

#[test]
fn a_packet_that_is_cut_anywhere_is_not_delivered() {
    let node = Node::new();
    for wrap in WRAPS {
        let whole = wrap(B, OWN, &good().bytes());
        for len in 20..whole.len() {
            let outcome = node.run(Program::FromUplink, &whole[..len]);
            // If it ends before the UDP port, it is not recognised as a tunnel packet, and the host drops it.
            let unread = whole[9] == 17 && len < 24;
            if unread {
                outcome.is(PASS, &[]);
            } else {
                outcome.is_dropped(DropReason::Truncated);
            }
        }
    }
    // Cut, with a matching outer length: the inner header is incomplete, or its length is wrong.
    for len in 20..60 {
        let mut packet = ipip(B, OWN, &good().bytes())[..len].to_vec();
        packet = patched(&packet, 3, len as u8);
        let outcome = node.run(Program::FromUplink, &packet);
        assert_eq!(outcome.verdict, DROP, "cut to {len}");
    }
}

#[test]
fn a_wrong_inner_checksum_is_dropped() {
    let node = Node::new();
    for at in [1, 5, 8, 10, 11, 19] {
        let mut inner = good().bytes();
        inner[at] ^= 0x10;
        let packet = ipip(B, OWN, &inner);
        let outcome = node.run(Program::FromUplink, &packet);
        outcome.is_dropped(DropReason::InnerBadChecksum);
    }
}

#[test]
fn the_inner_checksum_covers_options() {
    let node = Node::new();
    let inner = good().options();
    node.from_b(&inner).is(REDIRECT, &[Counter::TunnelToPod]);
    let mut wrong = inner.bytes();
    wrong[21] ^= 1;
    let packet = ipip(B, OWN, &wrong);
    node.run(Program::FromUplink, &packet)
        .is_dropped(DropReason::InnerBadChecksum);
}

#[test]
fn an_inner_time_to_live_of_1_suffices_for_the_node_and_is_answered_by_the_host_stack_for_a_pod() {
    let node = Node::new();
    let inner = |destination, ttl| Ip::tcp(B_POD, 40_000, destination, 80).ttl(ttl);
    for destination in [POD, OWN] {
        node.from_b(&inner(destination, 0))
            .is_dropped(DropReason::TtlExpired);
    }
    node.from_b(&inner(OWN, 1))
        .is(REDIRECT, &[Counter::TunnelToHost]);
    let outcome = node.from_b(&inner(POD, 1));
    outcome.is(REDIRECT, &[Counter::TtlToStack]);
    assert_eq!(outcome.packet(), inner(POD, 1).bytes());
    node.from_b(&good().ttl(2))
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn an_outer_fragment_is_dropped() {
    let node = Node::new();
    let inner = good().bytes();
    let first = Ip::new(B, OWN, PROTO_IPIP)
        .payload(inner.clone())
        .more_fragments();
    node.from_uplink(&first)
        .is_dropped(DropReason::OuterFragment);
    let later = Ip::new(B, OWN, PROTO_IPIP)
        .payload(inner.clone())
        .fragment_offset(8);
    node.from_uplink(&later)
        .is_dropped(DropReason::OuterFragment);
    let first = Ip::udp(B, 50_000, OWN, DEFAULT_UDP_PORT, &inner).more_fragments();
    node.from_uplink(&first)
        .is_dropped(DropReason::OuterFragment);
}

#[test]
fn ports_of_a_later_fragment_are_never_read() {
    let node = Node::new();
    // The payload looks like a UDP header with our port, but it is data.
    let later = Ip::udp(B, 50_000, OWN, DEFAULT_UDP_PORT, &good().bytes()).fragment_offset(8);
    node.from_uplink(&later).is(PASS, &[]);
}

#[test]
fn an_inner_fragment_goes_to_the_host_stack_which_reassembles() {
    let node = Node::new();
    let counters = [Counter::FragmentToStack];
    node.from_b(&good().more_fragments())
        .is(REDIRECT, &counters);
    node.from_b(&good().fragment_offset(4))
        .is(REDIRECT, &counters);
}

#[test]
fn a_tunnel_packet_with_outer_options_is_dropped() {
    let node = Node::new();
    let packet = Ip::new(B, OWN, PROTO_IPIP)
        .payload(good().bytes())
        .options();
    node.from_uplink(&packet)
        .is_dropped(DropReason::OuterOptions);
    let packet = Ip::udp(B, 50_000, OWN, DEFAULT_UDP_PORT, &good().bytes()).options();
    node.from_uplink(&packet)
        .is_dropped(DropReason::OuterOptions);
}

#[test]
fn a_frame_that_is_padded_to_the_ethernet_minimum_is_delivered() {
    let node = Node::new();
    let inner = Ip::new(B_POD, POD, ICMP).payload([8, 0, 0, 0]);
    let mut packet = ipip(B, OWN, &inner.bytes());
    packet.resize(46 + 14, 0);
    node.run(Program::FromUplink, &packet)
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn an_own_address_without_its_role_receives_no_tunnel_packet() {
    let mut node = Node::new();
    node.maps
        .node_addrs
        .insert(addr(OWN), NodeAddr::new(0, 0), 0)
        .unwrap();
    node.from_b(&good())
        .is(PASS, &[Counter::NotOurTunnelAddress]);
}

/// NAT translated the address that the peer knows.
#[test]
fn another_address_of_an_uplink_receives_tunnel_packets_but_none_inside_them() {
    const ON_UPLINK: &str = "10.0.0.99";
    let mut node = Node::new();
    let roles = NodeAddr::new(0, NodeAddr::OWN | NodeAddr::TUNNEL_ONLY);
    node.maps
        .node_addrs
        .insert(addr(ON_UPLINK), roles, 0)
        .unwrap();
    for wrap in WRAPS {
        let from = |source, destination, inner: &Ip| {
            let packet = wrap(source, destination, &inner.bytes());
            node.run(Program::FromUplink, &packet)
        };
        let outcome = from(B, ON_UPLINK, &good());
        outcome.is(REDIRECT, &[Counter::TunnelToPod]);
        let to_it = Ip::tcp(B_POD, 40_000, ON_UPLINK, 80);
        from(B, ON_UPLINK, &to_it).is_dropped(DropReason::InnerDestinationNotLocal);
        from(ON_UPLINK, OWN, &good()).is_dropped(DropReason::UnknownPeer);
    }
}
