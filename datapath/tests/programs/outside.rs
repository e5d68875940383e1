//! Hosts outside of the cluster that use a node as their router, and outer headers that no kernel accepts.

use crate::{
    fixture::*,
    packets::{Ip, checksum, patched},
};
use ipip_abi::{Counter, DropReason, Program};

/// A machine of the node's own network.
const NEIGHBOUR: &str = "10.0.0.66";

#[test]
fn a_neighbour_cannot_use_the_node_as_its_router_to_other_nodes_and_their_pods() {
    let node = Node::new();
    // Also a peer that needs no tunnel itself, and this node's own address as source.
    for source in [STRANGER, NEIGHBOUR, D, OWN] {
        for destination in [B_POD, C_POD, D_POD, E_POD, B_INTERNAL] {
            let packet = Ip::tcp(source, 40_000, destination, 10_250);
            node.from_uplink(&packet)
                .is_dropped(DropReason::UnencapsulatedToPeer);
        }
    }
    // A tunnel packet of its own does not help it.
    let inner = Ip::tcp(NEIGHBOUR, 40_000, B_POD, 80).bytes();
    for wrap in WRAPS {
        let packet = wrap(NEIGHBOUR, B_INTERNAL, &inner);
        node.run(Program::FromUplink, &packet)
            .is_dropped(DropReason::UnencapsulatedToPeer);
    }
}

#[test]
fn a_packet_to_the_underlay_address_of_a_peer_passes() {
    let node = Node::new();
    for destination in [B, C, D] {
        let packet = Ip::tcp(NEIGHBOUR, 40_000, destination, 22);
        node.from_uplink(&packet).is(PASS, &[]);
    }
}

/// The kernel would have discarded them.
#[test]
fn a_tunnel_packet_whose_outer_header_is_damaged_is_dropped() {
    let node = Node::new();
    let inner = Ip::tcp(B_POD, 40_000, POD, 80).bytes();
    for wrap in WRAPS {
        let whole = wrap(B, OWN, &inner);
        node.run(Program::FromUplink, &whole)
            .is(REDIRECT, &[Counter::TunnelToPod]);
        for first in [0x05, 0x35, 0x55, 0x65, 0xf5, 0x44, 0x40] {
            let packet = patched(&whole, 0, first);
            assert_eq!(checksum(&packet[..20]), 0);
            let outcome = node.run(Program::FromUplink, &packet);
            // Without a length the port of a datagram cannot be found.
            let is_unread = whole[9] == 17 && first & 15 < 5;
            if is_unread && outcome.verdict == PASS {
                continue;
            }
            outcome.is_dropped(DropReason::OuterHeaderInvalid);
        }
        for at in [1, 4, 8, 10, 11] {
            let mut packet = whole.clone();
            packet[at] ^= 0x20;
            node.run(Program::FromUplink, &packet)
                .is_dropped(DropReason::OuterHeaderInvalid);
        }
    }
}
