//! The programs and user space follow one constant: `ipip_abi::wire::OUTER_TTL`.
//!
//! `cargo xtask test datapath` runs this test twice. In the second run the object and this binary are built with the
//! feature `other-outer-ttl`, which changes nothing but the constant.

use crate::{
    fixture::*,
    packets::{Ip, checksum},
};
use ipip_abi::{Counter, wire::OUTER_TTL};

/// Offset of the time to live in an IPv4 header.
const TTL: usize = 8;
const EXPECTED: u8 = if cfg!(feature = "other-outer-ttl") {
    61
} else {
    64
};

#[test]
fn outer_headers_have_the_ttl_of_the_abi_and_the_checksum_that_user_space_prepared_for_it() {
    assert_eq!(OUTER_TTL, EXPECTED);
    let node = Node::new();
    for destination in [B_POD, C_POD] {
        let inner = Ip::tcp(POD, 40_000, destination, 80);
        let outcome = node.from_pod(&inner);
        assert!(outcome.moved.contains_key(Counter::PodToTunnel.name()));
        let outer = &outcome.packet()[..20];
        // The programs write this byte.
        assert_eq!(outer[TTL], EXPECTED);
        // They add it to the sum that user space stored in `Peer::header_sum`.
        assert_eq!(checksum(outer), 0, "to {destination}");
    }
}
