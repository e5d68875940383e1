//! ECN through the tunnel (RFC 6040).

use crate::{
    fixture::*,
    packets::{Ip, checksum},
};
use ipip_abi::{Counter, DropReason, Program, wire::PROTO_IPIP};

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
/// A DSCP value, which must not change.
const DSCP: u8 = 10 << 2;

#[test]
fn decapsulation_follows_figure_4_of_rfc_6040() {
    let node = Node::new();
    // Rows: inner; columns: outer Not-ECT, ECT(1), ECT(0), CE.
    let figure = [
        (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
        (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
        (ECT_0, [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)]),
        (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
    ];
    for (inner_ecn, row) in figure {
        for (outer_ecn, expected) in (0_u8..).zip(row) {
            let inner = Ip::tcp(B_POD, 40_000, POD, 80).tos(DSCP | inner_ecn);
            let outer = Ip::new(B, OWN, PROTO_IPIP)
                .payload(inner.bytes())
                .tos(outer_ecn);
            let outcome = node.run(Program::FromUplink, &outer.bytes());
            match expected {
                Some(ecn) => {
                    outcome.is(REDIRECT, &[Counter::TunnelToPod]);
                    assert_eq!(outcome.packet(), inner.tos(DSCP | ecn).ttl(63).bytes());
                    assert_eq!(checksum(&outcome.packet()[..20]), 0);
                }
                None => outcome.is_dropped(DropReason::EcnNotCapable),
            }
        }
    }
}

#[test]
fn encapsulation_copies_every_code_point_to_the_outer_header() {
    let node = Node::new();
    for ecn in [NOT_ECT, ECT_1, ECT_0, CE] {
        let inner = Ip::tcp(POD, 40_000, B_POD, 80).tos(DSCP | ecn);
        assert_eq!(node.from_pod(&inner).packet()[1], DSCP | ecn);
    }
}
