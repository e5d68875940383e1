//! TCP's maximum segment size in SYNs: lowered to what the path carries, in both directions and by each encapsulation.

use crate::{
    fixture::*,
    packets::{Ip, TCP, checksum, frame},
};
use etherparse::{Ipv4Header, TcpHeader, TcpOptionElement};
use ipip_abi::{Counter, Peer, Program};

const FIN: u8 = 1;
pub const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// What the paths of the fixture carry.
const MOST: u16 = PATH_MTU - 40;

/// The option that states an MSS.
fn mss(value: u16) -> [u8; 4] {
    let [high, low] = value.to_be_bytes();
    [2, 4, high, low]
}

/// The usual options of Linux: MSS, SACK permitted, timestamps, no operation, window scale.
pub fn usual(value: u16) -> Vec<u8> {
    let others = [4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    [&mss(value)[..], &others].concat()
}

/// A segment with these flags and options, whose length is a multiple of four, and the right checksum.
pub fn segment(source: &str, destination: &str, flags: u8, options: &[u8]) -> Ip {
    let mut segment = vec![
        0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0, flags, 0xff, 0xff,
    ];
    segment[12] = (5 + options.len() as u8 / 4) << 4;
    segment.extend([0; 4]);
    segment.extend(options);
    let mut pseudo = [addr(source).0, addr(destination).0].concat();
    pseudo.extend([0, TCP, 0, segment.len() as u8]);
    let sum = checksum(&[pseudo, segment.clone()].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    Ip::new(source, destination, TCP).payload(segment)
}

/// The TCP header of an IPv4 packet, whose checksum is verified.
#[track_caller]
fn parse(packet: &[u8]) -> TcpHeader {
    let (ip, rest) = Ipv4Header::from_slice(packet).expect("an IPv4 header");
    let (tcp, data) = TcpHeader::from_slice(rest).expect("a TCP header");
    let sum = tcp.calc_checksum_ipv4(&ip, data).expect("a short packet");
    assert_eq!(tcp.checksum, sum, "the checksum of {packet:x?}");
    tcp
}

/// The MSS that a packet states. Its other options must be as [`usual`] has them.
#[track_caller]
fn stated(packet: &[u8]) -> u16 {
    let tcp = parse(packet);
    let Some(Ok(TcpOptionElement::MaximumSegmentSize(value))) = tcp.options_iterator().next()
    else {
        panic!("no MSS in {packet:x?}");
    };
    assert_eq!(tcp.options.as_slice(), usual(value));
    value
}

/// A pod of each peer, the bytes of the outer headers, and the counters beside those of the program.
const PEERS: [(&str, usize, &[Counter]); 3] = [
    (B_POD, 20, &[]),
    (C_POD, 28, &[Counter::NeighbourFallback]),
    (D_POD, 0, &[]),
];

#[test]
fn a_syn_to_a_peer_states_at_most_what_the_path_carries() {
    let node = Node::new();
    for (destination, head, others) in PEERS {
        for flags in [SYN, SYN | ACK, SYN | FIN, 0xc0 | SYN] {
            for (program, source, counter) in [
                (Program::FromPod, POD, Counter::PodToTunnel),
                (Program::FromHost, OWN, Counter::HostToTunnel),
                (Program::FromFarEnd, POD, Counter::HostToTunnel),
            ] {
                let packet = segment(source, destination, flags, &usual(1460));
                let outcome = node.run(program, &packet.bytes());
                let counters = [&[counter, Counter::MssClamped], others].concat();
                outcome.is(REDIRECT, &counters);
                assert_eq!(stated(&outcome.packet()[head..]), MOST);
            }
        }
    }
}

/// A SYN that arrives from each peer, and the way of the whole packet into the node.
fn arriving(destination: &str, options: &[u8]) -> [Vec<u8>; 3] {
    let inner = |source| segment(source, destination, SYN | ACK, options).bytes();
    [
        ipip(B, OWN, &inner(B_POD)),
        fou(C, OWN, &inner(C_POD)),
        inner(D_POD),
    ]
}

/// The peer's node knows only the MTU of its own direction, and may know no larger one.
#[test]
fn a_syn_of_a_peer_states_at_most_what_this_nodes_path_to_it_carries() {
    let mut node = Node::new();
    for mtu in [PATH_MTU, 1260] {
        node.raise_mtu(mtu);
        for (destination, counter) in [(POD, Counter::TunnelToPod), (OWN, Counter::TunnelToHost)] {
            for packet in arriving(destination, &usual(1460)) {
                let outcome = node.run(Program::FromUplink, &packet);
                outcome.is(REDIRECT, &[counter, Counter::MssClamped]);
                assert_eq!(stated(outcome.packet()), mtu - 40);
            }
        }
    }
}

#[test]
fn each_peers_own_path_decides() {
    let mut node = Node::new();
    for (index, mtu) in [(1, 1300), (2, 1400), (3, 8000)] {
        let peer = node.maps.peers.get(&index, 0).unwrap();
        node.maps.peers.set(index, Peer { mtu, ..peer }, 0).unwrap();
    }
    for (packet, expected) in arriving(POD, &usual(8960)).iter().zip([1260, 1360, 7960]) {
        let outcome = node.run(Program::FromUplink, packet);
        assert_eq!(stated(outcome.packet()), expected);
    }
}

#[test]
fn an_mss_is_never_raised() {
    let node = Node::new();
    for value in [0, 1, 536, 1200, MOST - 1, MOST] {
        for (destination, head, others) in PEERS {
            let outcome = node.from_pod(&segment(POD, destination, SYN, &usual(value)));
            outcome.is(REDIRECT, &[&[Counter::PodToTunnel], others].concat());
            assert_eq!(stated(&outcome.packet()[head..]), value);
        }
        for packet in arriving(POD, &usual(value)) {
            let outcome = node.run(Program::FromUplink, &packet);
            outcome.is(REDIRECT, &[Counter::TunnelToPod]);
            assert_eq!(stated(outcome.packet()), value);
        }
    }
}

/// The carries of the sum, with each value that the high and the low byte can have.
#[test]
fn the_checksum_is_right_for_all_values() {
    let mut node = Node::new();
    let values = || {
        (0..=u16::MAX)
            .step_by(251)
            .chain([0xff, 0xfeff, 0xff00, u16::MAX])
    };
    for mtu in [1260, 1295, 1296, 1480, 8999] {
        node.raise_mtu(mtu);
        for value in values() {
            let outcome = node.from_pod(&segment(POD, D_POD, SYN, &usual(value)));
            assert_eq!(stated(outcome.packet()), value.min(mtu - 40));
        }
    }
}

/// Options before the MSS, and after it.
#[test]
fn the_mss_is_found_among_other_options() {
    let node = Node::new();
    let unknown = |len: usize| [&[253, len as u8], &vec![2; len - 2][..]].concat();
    let lists = [
        (vec![], vec![]),
        (vec![1], vec![1, 1, 0]),
        (vec![1, 1], vec![1, 1]),
        (vec![1; 36], vec![]),
        (vec![1; 33], vec![1; 3]),
        (vec![], vec![1; 36]),
        (vec![4, 2], vec![1, 0]),
        (vec![3, 3, 7], vec![0]),
        (unknown(36), vec![]),
        (unknown(35), vec![1]),
        (vec![8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 4, 2], vec![3, 3, 7, 1]),
        (vec![], vec![253, 2, 1, 0]),
        // Behind the end of the list nothing counts.
        (vec![], vec![0, 2, 4, 255]),
        (vec![], vec![0, 253, 0, 77]),
    ];
    for (before, after) in &lists {
        let options = [before, &mss(1460)[..], after].concat();
        let packet = segment(POD, D_POD, SYN, &options);
        let outcome = node.from_pod(&packet);
        outcome.is(REDIRECT, &[Counter::PodToTunnel, Counter::MssClamped]);
        let expected = [before, &mss(MOST)[..], after].concat();
        assert_eq!(parse(outcome.packet()).options.as_slice(), expected);
    }
    // Linux takes the last of several.
    let outcome = node.from_pod(&segment(POD, D_POD, SYN, &[mss(1300), mss(1460)].concat()));
    let expected = [mss(1300), mss(MOST)].concat();
    assert_eq!(parse(outcome.packet()).options.as_slice(), expected);
}

/// Asserts that a segment of a pod, whose TCP header may be malformed, is sent without a change.
#[track_caller]
fn stays(node: &Node, packet: Ip) {
    let outcome = node.from_pod(&packet);
    outcome.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(outcome.packet(), packet.ttl(63).bytes());
}

#[test]
fn a_malformed_list_of_options_leaves_the_packet_unchanged() {
    let node = Node::new();
    let mut lists: Vec<Vec<u8>> = vec![
        // An MSS of another length.
        vec![2, 3, 255, 1],
        vec![2, 5, 255, 255, 255, 1, 1, 1],
        vec![2, 2, 255, 255],
        vec![2, 6, 255, 255, 255, 255, 0, 0],
        // It does not end within the options.
        vec![1, 2, 4, 255],
        vec![1, 1, 2, 4],
        vec![1, 1, 1, 2],
    ];
    // Another option of no length, or that does not end within them, before and after the MSS.
    for bad in [
        [253, 0, 1, 1],
        [253, 1, 1, 1],
        [1, 1, 1, 253],
        [1, 1, 253, 3],
    ] {
        lists.push([mss(1460), bad].concat());
    }
    for len in [0, 1, 9, 40, 255] {
        lists.push([[253, len, 1, 1], mss(1460)].concat());
    }
    for options in lists {
        stays(&node, segment(POD, D_POD, SYN, &options));
    }
    // A header of fewer than five words, and one that is longer than the packet.
    for words in (0..5).chain([11, 15]) {
        let mut bytes = segment(POD, D_POD, SYN, &usual(1460)).bytes()[20..].to_vec();
        bytes[12] = words << 4;
        stays(&node, Ip::new(POD, D_POD, TCP).payload(bytes));
    }
    // It ends before its flags.
    for len in 0..20 {
        let bytes = &segment(POD, D_POD, SYN, &usual(1460)).bytes()[20..20 + len];
        stays(&node, Ip::new(POD, D_POD, TCP).payload(bytes));
    }
}

/// The bytes behind the packet are not its own.
#[test]
fn options_beyond_the_packets_end_are_not_read() {
    let node = Node::new();
    let packet = segment(POD, D_POD, SYN, &usual(1460)).bytes();
    let cut = segment(POD, D_POD, SYN, &[]).bytes();
    let mut whole = frame(&packet);
    // The IP header says that the segment has no options, its own header says that it has.
    whole[14..34].copy_from_slice(&cut[..20]);
    let outcome = node.run_frame(Program::FromPod, &whole);
    outcome.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(outcome.packet()[20..], packet[20..]);
}

#[test]
fn other_segments_and_protocols_and_a_syn_without_the_option_stay() {
    let node = Node::new();
    for flags in [0, ACK, FIN | ACK, RST, !SYN] {
        stays(&node, segment(POD, D_POD, flags, &usual(1460)));
    }
    stays(&node, segment(POD, D_POD, SYN, &[]));
    stays(&node, segment(POD, D_POD, SYN, &usual(1460)[4..]));
    let payload = segment(POD, D_POD, SYN, &usual(1460)).bytes()[20..].to_vec();
    for protocol in [17, 132, 1] {
        stays(
            &node,
            Ip::new(POD, D_POD, protocol).payload(payload.clone()),
        );
    }
}

#[test]
fn a_path_without_an_mtu_limits_nothing() {
    let mut node = Node::new();
    for mtu in [0, 20, 40] {
        node.raise_mtu(mtu);
        let packet = segment(OWN, D_POD, SYN, &usual(1460));
        let outcome = node.from_host(&packet);
        outcome.is(REDIRECT, &[Counter::HostToTunnel]);
        assert_eq!(outcome.packet(), packet.bytes());
    }
}

#[test]
fn a_syn_to_a_pod_of_this_node_or_to_the_internet_stays() {
    let node = Node::new();
    for destination in [POD_2, "8.8.8.8"] {
        let outcome = node.from_pod(&segment(POD, destination, SYN, &usual(1460)));
        assert_eq!(stated(outcome.packet()), 1460);
    }
    let packet = segment(STRANGER, OWN, SYN, &usual(1460)).bytes();
    let outcome = node.run(Program::FromUplink, &packet);
    outcome.is(PASS, &[]);
    assert_eq!(outcome.packet(), packet);
}

#[test]
fn a_first_fragment_has_the_option_and_a_later_one_only_looks_like_it() {
    let node = Node::new();
    let first = segment(OWN, B_POD, SYN, &usual(1460)).more_fragments();
    let outcome = node.from_host(&first);
    outcome.is(REDIRECT, &[Counter::HostToTunnel, Counter::MssClamped]);
    assert_eq!(stated(&outcome.packet()[20..]), MOST);
    let outcome = node.from_b(&segment(B_POD, POD, SYN, &usual(1460)).more_fragments());
    outcome.is(REDIRECT, &[Counter::FragmentToStack, Counter::MssClamped]);
    assert_eq!(stated(outcome.packet()), MOST);

    for later in [
        first.fragment_offset(3),
        segment(OWN, B_POD, SYN, &usual(1460)).fragment_offset(1),
    ] {
        let outcome = node.from_host(&later);
        outcome.is(REDIRECT, &[Counter::HostToTunnel]);
        assert_eq!(outcome.packet()[20..], later.bytes());
    }
    let later = segment(B_POD, POD, SYN, &usual(1460)).fragment_offset(1);
    let outcome = node.from_b(&later);
    outcome.is(REDIRECT, &[Counter::FragmentToStack]);
    assert_eq!(outcome.packet(), later.bytes());
}

#[test]
fn a_syn_behind_ip_options_is_clamped() {
    let node = Node::new();
    for (destination, head, others) in PEERS {
        let outcome = node.from_pod(&segment(POD, destination, SYN, &usual(1460)).options());
        let counters = [&[Counter::PodToTunnel, Counter::MssClamped], others].concat();
        outcome.is(REDIRECT, &counters);
        assert_eq!(stated(&outcome.packet()[head..]), MOST);
        // Its data begins where a packet without options has its flags.
        let packet = segment(POD, destination, ACK, &usual(1460)).options();
        let outcome = node.from_pod(&packet);
        outcome.is(REDIRECT, &[&[Counter::PodToTunnel], others].concat());
    }
    let inner = segment(B_POD, POD, SYN, &usual(1460)).options();
    let outcome = node.from_b(&inner);
    outcome.is(REDIRECT, &[Counter::TunnelToPod, Counter::MssClamped]);
    assert_eq!(stated(outcome.packet()), MOST);
}

/// It would have to be unchanged where it is segmented.
#[test]
fn a_syn_that_claims_to_be_a_gso_packet_stays() {
    let node = Node::new();
    let packet = segment(POD, B_POD, SYN, &usual(1460)).bytes();
    let outcome = node.run_gso(Program::FromPod, &packet, 500);
    outcome.is(PASS, &[Counter::LargeSegmented]);
    assert_eq!(outcome.packet(), packet);
}

/// A reply of a Service's flow, and a packet of a pod with limited bandwidth, are the same to the connection.
#[test]
fn a_syn_that_takes_the_host_stack_is_clamped_on_its_way_in() {
    let node = Node::new();
    let ending = segment(B_POD, POD, SYN, &usual(1460)).ttl(1);
    let outcome = node.from_b(&ending);
    outcome.is(REDIRECT, &[Counter::TtlToStack, Counter::MssClamped]);
    assert_eq!(stated(outcome.packet()), MOST);
}
