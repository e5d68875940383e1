//! Traffic of a peer: what went over its public endpoint is counted apart, and bytes are those on the wire.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{NodeAddr, Peer, PeerBytes, Program};

/// Bytes of the inner packet of these tests: IPv4 and TCP headers.
const INNER: u64 = 40;

fn bytes(node: &Node, peer: u16) -> PeerBytes {
    node.maps.traffic(peer).unwrap().bytes
}

/// Makes the path to a peer, and the address from which its packets come, public.
fn make_public(node: &mut Node, index: u32, underlay: &str) {
    let mut peer = node.maps.peers.get(&index, 0).unwrap();
    peer.flags |= Peer::PUBLIC;
    node.maps.peers.set(index, peer, 0).unwrap();
    let roles = NodeAddr::UNDERLAY | NodeAddr::PUBLIC;
    let address = NodeAddr::new(index as u16, roles);
    node.maps
        .node_addrs
        .insert(addr(underlay), address, 0)
        .unwrap();
}

#[test]
fn packets_of_private_and_public_paths_are_counted_apart_in_both_directions() {
    for (wrap, index, underlay, pod, head) in
        [(WRAPS[0], 1, B, B_POD, 20), (WRAPS[1], 2, C, C_POD, 28)]
    {
        let mut node = Node::new();
        let sent = Ip::tcp(POD, 40_000, pod, 80);
        let received = wrap(underlay, OWN, &Ip::tcp(pod, 80, POD, 40_000).bytes());
        let exchange = |node: &Node, answers: u32| {
            assert_eq!(node.from_pod(&sent).verdict, REDIRECT);
            for _ in 0..answers {
                let outcome = node.run(Program::FromUplink, &received);
                assert_eq!(outcome.verdict, REDIRECT);
            }
        };
        let len = INNER + head;
        exchange(&node, 2);
        let expected = |tx, rx| PeerBytes { tx, rx };
        assert_eq!(
            bytes(&node, index),
            expected([len, 0], [2 * len, 0]),
            "{head}"
        );
        make_public(&mut node, index.into(), underlay);
        exchange(&node, 3);
        assert_eq!(
            bytes(&node, index),
            expected([len, len], [2 * len, 3 * len]),
            "{head}"
        );
        let traffic = node.maps.traffic(index).unwrap();
        assert_eq!((traffic.tx_packets, traffic.rx_packets), (2, 5));
    }
}

#[test]
fn a_direct_peers_packets_are_private_and_have_no_outer_header() {
    let node = Node::new();
    node.from_pod(&Ip::tcp(POD, 40_000, D_POD, 80));
    node.from_uplink(&Ip::tcp(D_POD, 80, POD, 40_000));
    let expected = PeerBytes {
        tx: [INNER, 0],
        rx: [INNER, 0],
    };
    assert_eq!(bytes(&node, 3), expected);
}

#[test]
fn what_the_host_sends_is_counted_and_what_is_dropped_is_not() {
    let mut node = Node::new();
    make_public(&mut node, 1, B);
    node.from_host(&Ip::tcp(OWN, 40_000, B_POD, 80));
    // The inner source is a pod of C.
    node.from_b(&Ip::tcp(C_POD, 40_000, POD, 80));
    let expected = PeerBytes {
        tx: [0, INNER + 20],
        rx: [0, 0],
    };
    assert_eq!(bytes(&node, 1), expected);
    assert_eq!(bytes(&node, 2), PeerBytes::default());
}

#[test]
fn each_segment_of_a_large_packet_counts_with_its_headers() {
    /// Payload bytes of a segment.
    const SEGMENT: u64 = 1000;
    /// IPv4, and TCP with timestamps.
    const HEADERS: u64 = 52;
    for (payload, segments) in [(SEGMENT, 1), (2 * SEGMENT, 2), (2 * SEGMENT + 1, 3)] {
        let node = Node::new();
        let rest = payload + HEADERS - INNER;
        let inner = Ip::tcp(D_POD, 80, POD, 40_000).data(&vec![0; rest as usize]);
        let outcome = node.run_gso(Program::FromUplink, &inner.bytes(), SEGMENT as u32);
        assert_eq!(outcome.verdict, REDIRECT);
        let expected = payload + segments * HEADERS;
        assert_eq!(bytes(&node, 3).rx, [expected, 0], "{payload}");
    }
}
