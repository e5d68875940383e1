//! Lookups of routes.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{Counter, DropReason, Route};

#[test]
fn the_longest_prefix_decides_which_peer_an_address_belongs_to() {
    let mut node = Node::new();
    // A range of C inside the range of B.
    node.route("10.42.2.128", 25, 2, Route::PODS);
    node.from_b(&Ip::tcp("10.42.2.127", 1, POD, 80))
        .is(REDIRECT, &[Counter::TunnelToPod]);
    let outcome = node.from_b(&Ip::tcp("10.42.2.128", 1, POD, 80));
    outcome.is_dropped(DropReason::InnerSourceNotOfPeer);
    let outcome = node.from_pod(&Ip::tcp(POD, 1, "10.42.2.200", 80));
    assert_eq!(outcome.packet()[16..20], addr(C).0);
}
