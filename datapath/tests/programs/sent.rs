//! User space sees the peers to which packets were sent in memory that it shares with the programs.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{DropReason, LARGE, Peer};
use ipip_datapath::{Maps, SentReader};

#[test]
fn each_reader_sees_once_that_packets_were_sent_to_a_peer_and_nothing_of_what_it_sends() {
    let node = Node::new();
    let (to_b, to_c) = (
        Ip::tcp(POD, 40_000, B_POD, 80),
        Ip::tcp(POD, 40_000, C_POD, 80),
    );
    let take = |reader| node.maps.sent.take(reader);
    assert!(take(SentReader::Paths).is_empty());
    for packet in [&to_b, &to_b, &to_c] {
        assert_eq!(node.from_pod(packet).verdict, REDIRECT);
    }
    assert_eq!(take(SentReader::Paths), [1, 2]);
    assert!(take(SentReader::Paths).is_empty());
    assert_eq!(node.from_host(&to_c).verdict, REDIRECT);
    node.from_b(&Ip::tcp(B_POD, 80, POD, 40_000));
    assert_eq!(take(SentReader::Paths), [2]);
    // What an agent has not seen, the next one does.
    let next = Maps::open(node.pins()).unwrap();
    assert!(next.sent.take(SentReader::Paths).is_empty());
    assert_eq!(next.sent.take(SentReader::NextHops), [1, 2]);
    assert!(take(SentReader::NextHops).is_empty());
}

#[test]
fn a_reader_of_large_packets_sees_only_to_whom_such_were_sent() {
    let node = Node::new();
    let to_b = |len: usize| {
        let packet = Ip::udp(POD, 40_000, B_POD, 80, &vec![0; len]);
        assert_eq!(node.from_pod(&packet).verdict, REDIRECT);
    };
    let take = |reader| node.maps.sent.take(reader);
    // The headers of IP and UDP.
    let limit = LARGE - (20 + 8);
    to_b(limit);
    assert!(take(SentReader::LargePaths).is_empty());
    assert_eq!(take(SentReader::Paths), [1]);
    to_b(limit + 1);
    to_b(10);
    assert_eq!(take(SentReader::Paths), [1]);
    assert_eq!(take(SentReader::LargePaths), [1]);
    to_b(10);
    assert!(take(SentReader::LargePaths).is_empty());
    assert_eq!(take(SentReader::Paths), [1]);
}

/// Its path is then searched at once.
#[test]
fn a_packet_to_a_peer_without_a_path_counts_as_sent_to_it() {
    let mut node = Node::new();
    node.maps.peers.set(2, Peer::default(), 0).unwrap();
    let of_pod = node.from_pod(&Ip::tcp(POD, 40_000, C_POD, 80));
    of_pod.is_dropped(DropReason::PeerUnreachable);
    assert_eq!(node.maps.sent.take(SentReader::Paths), [2]);
    let of_host = node.from_host(&Ip::tcp(OWN, 40_000, C_POD, 80));
    of_host.is_dropped(DropReason::PeerUnreachable);
    assert_eq!(node.maps.sent.take(SentReader::Paths), [2]);
    assert_eq!(node.maps.traffic(2).unwrap().tx_packets, 0);
}

#[test]
fn a_packet_that_is_dropped_counts_as_sent_to_nobody() {
    let node = Node::new();
    node.from_pod(&Ip::tcp(B_POD, 40_000, C_POD, 80))
        .is_dropped(DropReason::PodSourceSpoofed);
    assert!(node.maps.sent.take(SentReader::Paths).is_empty());
}
