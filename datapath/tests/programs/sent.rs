//! User space sees the peers to which packets were sent in memory that it shares with the programs.

use crate::{fixture::*, packets::Ip};
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
fn a_packet_that_is_dropped_counts_as_sent_to_nobody() {
    let node = Node::new();
    node.from_pod(&Ip::tcp(B_POD, 40_000, C_POD, 80))
        .is_dropped(ipip_abi::DropReason::PodSourceSpoofed);
    assert!(node.maps.sent.take(SentReader::Paths).is_empty());
}
