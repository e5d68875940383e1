//! Probes: the candidate that a probe names, the answer of the peer's programs, and everything that proves nothing.

use crate::{
    fixture::*,
    packets::{Ip, checksum, patched},
};
use ipip_abi::{
    Addr, Candidate, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Peer, Program,
    probe::{ProbeKey, ProbeMessage, ProbeSecret, ProbeState, candidate_index},
};
use ipip_testkit::node_maps::PeerPath;
use zerocopy::{FromBytes, IntoBytes};

/// The probe addresses of this node and of its peers.
const OWN_PROBE: &str = "10.42.1.0";
const B_PROBE: &str = "10.42.2.0";
pub const C_PROBE: &str = "10.42.3.0";
const D_PROBE: &str = "10.42.4.0";

pub const KEY: ProbeKey = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
const OWN_ID: [u8; 8] = *b"node own";
const PEER_ID: [u8; 8] = *b"the peer";

/// Bytes of an answer, with its inner header.
const ANSWER: usize = 20 + 8 + size_of::<ProbeMessage>();

/// A node with a secret and every candidate of its peers B, C and D.
pub fn probing() -> Node {
    let mut node = Node::new();
    node.configure(|config| config.probe_address = addr(OWN_PROBE));
    for (peer, address, probe) in [(1, B, B_PROBE), (2, C, C_PROBE), (3, D, D_PROBE)] {
        let secret = ProbeSecret {
            key: KEY,
            own: OWN_ID,
            peer: PEER_ID,
            address: addr(probe),
            _pad: 0,
        };
        node.maps.probe_secrets.set(peer, secret, 0).unwrap();
        for (candidate, encapsulation) in [
            (Candidate::PrivateIpip, Encapsulation::Ipip),
            (Candidate::PublicIpip, Encapsulation::Ipip),
            (Candidate::PublicUdp, Encapsulation::Udp),
            (Candidate::Direct, Encapsulation::Direct),
        ] {
            let path = PeerPath {
                next_hop: Some(NEXT_HOP_MAC),
                uplink_mac: UPLINK_MAC,
                ..PeerPath::new(addr(address), encapsulation, 1)
            };
            let index = candidate_index(peer as u16, candidate as u8);
            let path: Peer = path.entry(addr(OWN));
            node.maps.candidates.set(index, path, 0).unwrap();
        }
    }
    node
}

/// A message of the peer, not yet signed.
pub fn message(kind: u8, candidate: Candidate, len: usize) -> ProbeMessage {
    ProbeMessage {
        magic: ProbeMessage::MAGIC,
        kind,
        flags: 0,
        len: (len as u16).to_be_bytes(),
        sent_at: 1000_u64.to_be_bytes(),
        sender: PEER_ID,
        receiver: OWN_ID,
        source: addr("10.1.1.1"),
        destination: addr("198.51.100.11"),
        candidate: candidate as u8,
        _pad: [0; 3],
        seen: Addr::ZERO,
        code: [0; 8],
    }
}

/// The inner packet with a message, and zeros up to the length that it states.
pub fn packet(from: &str, message: ProbeMessage) -> Ip {
    let mut payload = message.as_bytes().to_vec();
    if message.kind == ProbeMessage::PROBE {
        payload.resize(usize::from(u16::from_be_bytes(message.len)) - 28, 0);
    }
    Ip::udp(
        from,
        DEFAULT_UDP_PORT,
        OWN_PROBE,
        DEFAULT_UDP_PORT,
        &payload,
    )
}

/// A probe of `len` bytes from the peer, by a candidate.
fn probe(from: &str, candidate: Candidate, len: usize) -> Ip {
    packet(
        from,
        message(ProbeMessage::PROBE, candidate, len).signed(KEY),
    )
}

pub fn state(node: &Node, peer: u16, candidate: Candidate) -> ProbeState {
    let index = candidate_index(peer, candidate as u8);
    node.maps.probe_states.get(&index, 0).unwrap()
}

/// Asserts that `inner` is the authentic answer to a probe of `len` bytes from `from`, with the outer source `seen`.
#[track_caller]
fn is_answer(
    inner: &[u8],
    (from, seen): (&str, &str),
    candidate: Candidate,
    len: usize,
    flags: u8,
) {
    assert_eq!(inner.len(), ANSWER);
    assert_eq!(checksum(&inner[..20]), 0);
    assert_eq!(inner[8], 64);
    assert_eq!(inner[12..16], addr(OWN_PROBE).0);
    assert_eq!(inner[16..20], addr(from).0);
    assert_eq!(inner[22..24], DEFAULT_UDP_PORT.to_be_bytes());
    assert_eq!(inner[24..26], (ANSWER as u16 - 20).to_be_bytes());
    let answer = ProbeMessage::read_from_bytes(&inner[28..]).unwrap();
    let expected = ProbeMessage {
        flags,
        sender: OWN_ID,
        receiver: PEER_ID,
        seen: addr(seen),
        ..message(ProbeMessage::ANSWER, candidate, len)
    };
    assert_eq!(answer, expected.signed(KEY));
}

#[test]
fn a_peers_probe_is_answered_by_a_new_packet_in_its_encapsulation() {
    for (wrap, candidate, head) in [
        (WRAPS[0], Candidate::PublicIpip, 20),
        (WRAPS[1], Candidate::PublicUdp, 28),
    ] {
        for len in [ANSWER, 600, 1480] {
            let node = probing();
            let inner = probe(B_PROBE, candidate, len).bytes();
            let outcome = node.run(Program::FromUplink, &wrap(B, OWN, &inner));
            outcome.is(REDIRECT, &[Counter::ProbeAnswered]);
            let outer = outcome.packet();
            assert_eq!(outer.len(), head + ANSWER);
            assert_eq!(checksum(&outer[..20]), 0);
            assert_eq!(outer[2..4], ((head + ANSWER) as u16).to_be_bytes());
            assert_eq!(outer[8], 64);
            assert_eq!(outer[12..16], addr(OWN).0);
            assert_eq!(outer[16..20], addr(B).0);
            if head == 28 {
                // The ports are not those of the probe in the other order.
                let source = u16::from_be_bytes([outer[20], outer[21]]);
                assert!((0xc000..0xe000).contains(&source));
                assert_eq!(outer[22..24], DEFAULT_UDP_PORT.to_be_bytes());
                assert_eq!(outer[24..28], [0, (ANSWER + 8) as u8, 0, 0]);
            }
            is_answer(
                &outer[head..],
                (B_PROBE, B),
                candidate,
                len,
                ProbeMessage::ACCEPTED,
            );
            assert_eq!(outcome.frame[..12], [NEXT_HOP_MAC.0, UPLINK_MAC.0].concat());
        }
    }
}

/// It proves the address; whether data from there is accepted is the agent's decision.
#[test]
fn a_probe_from_an_address_that_is_no_peers_yet_is_answered_but_not_accepted() {
    let node = probing();
    let inner = probe(B_PROBE, Candidate::PublicIpip, 600).bytes();
    let outcome = node.run(Program::FromUplink, &WRAPS[0](STRANGER, OWN, &inner));
    // The next hop of that address is not known, so the kernel looks it up.
    outcome.is(
        REDIRECT,
        &[Counter::NeighbourFallback, Counter::ProbeAnswered],
    );
    let outer = outcome.packet();
    assert_eq!(outer[16..20], addr(STRANGER).0);
    is_answer(
        &outer[20..],
        (B_PROBE, STRANGER),
        Candidate::PublicIpip,
        600,
        0,
    );
    let state = state(&node, 1, Candidate::PublicIpip);
    assert_eq!((state.peer_source, state.asked), (addr(STRANGER), 1000));
    // The address of another peer is not B's either.
    let node = probing();
    let outcome = node.run(Program::FromUplink, &WRAPS[0](C, OWN, &inner));
    is_answer(
        &outcome.packet()[20..],
        (B_PROBE, C),
        Candidate::PublicIpip,
        600,
        0,
    );
}

/// A node whose public address nobody has stated has no public candidate: its probes are answered all the same, so that it learns
/// what its peers see. The answer is not longer than the probe.
#[test]
fn a_peer_without_a_public_address_learns_from_the_answer_what_its_probe_came_from() {
    for (wrap, candidate, head) in [
        (WRAPS[0], Candidate::PublicIpip, 20),
        (WRAPS[1], Candidate::PublicUdp, 28),
    ] {
        let mut node = probing();
        let index = candidate_index(1, candidate as u8);
        let none = Peer::default();
        node.maps.candidates.set(index, none, 0).unwrap();
        let inner = probe(B_PROBE, candidate, ANSWER).bytes();
        let arrived = wrap(STRANGER, OWN, &inner);
        let outcome = node.run(Program::FromUplink, &arrived);
        outcome.is(
            REDIRECT,
            &[Counter::NeighbourFallback, Counter::ProbeAnswered],
        );
        let outer = outcome.packet();
        assert_eq!(outer[16..20], addr(STRANGER).0);
        assert_eq!(outer.len(), head + inner.len());
        is_answer(&outer[head..], (B_PROBE, STRANGER), candidate, ANSWER, 0);
        node.run(Program::FromUplink, &arrived)
            .is_dropped(DropReason::ProbeReplayed);
    }
}

#[test]
fn what_a_prober_states_as_seen_is_replaced_in_the_answer() {
    let node = probing();
    let message = ProbeMessage {
        seen: addr(C),
        ..message(ProbeMessage::PROBE, Candidate::PublicIpip, 600)
    };
    let inner = packet(B_PROBE, message.signed(KEY)).bytes();
    let outcome = node.run(Program::FromUplink, &WRAPS[0](B, OWN, &inner));
    is_answer(
        &outcome.packet()[20..],
        (B_PROBE, B),
        Candidate::PublicIpip,
        600,
        ProbeMessage::ACCEPTED,
    );
}

#[test]
fn a_direct_probe_is_answered_without_an_outer_header() {
    for (from, flags) in [(D_PROBE, ProbeMessage::ACCEPTED), (B_PROBE, 0)] {
        let node = probing();
        let outcome = node.from_uplink(&probe(from, Candidate::Direct, 700));
        outcome.is(REDIRECT, &[Counter::ProbeAnswered]);
        is_answer(
            outcome.packet(),
            (from, from),
            Candidate::Direct,
            700,
            flags,
        );
        assert_eq!(outcome.frame[..6], NEXT_HOP_MAC.0);
    }
}

#[test]
fn a_probe_that_is_repeated_or_older_is_not_answered_again() {
    let node = probing();
    let at = |time: u64, candidate| {
        let message = ProbeMessage {
            sent_at: time.to_be_bytes(),
            ..message(ProbeMessage::PROBE, candidate, 600)
        };
        let inner = packet(B_PROBE, message.signed(KEY)).bytes();
        let wrap = WRAPS[usize::from(candidate == Candidate::PublicUdp)];
        node.run(Program::FromUplink, &wrap(B, OWN, &inner))
    };
    at(1000, Candidate::PublicIpip).is(REDIRECT, &[Counter::ProbeAnswered]);
    for old in [1000, 999, 0] {
        at(old, Candidate::PublicIpip).is_dropped(DropReason::ProbeReplayed);
    }
    // Paths do not keep the order among themselves.
    at(1000, Candidate::PublicUdp).is(REDIRECT, &[Counter::ProbeAnswered]);
    at(1001, Candidate::PublicIpip).is(REDIRECT, &[Counter::ProbeAnswered]);
}

#[test]
fn a_peer_is_answered_only_up_to_the_rate() {
    let node = probing();
    let mut answered = 0;
    for time in 1..=1000_u64 {
        let message = ProbeMessage {
            sent_at: time.to_be_bytes(),
            ..message(ProbeMessage::PROBE, Candidate::PublicIpip, 600)
        };
        let inner = packet(B_PROBE, message.signed(KEY)).bytes();
        let outcome = node.run(Program::FromUplink, &WRAPS[0](B, OWN, &inner));
        match outcome.verdict {
            REDIRECT => answered += 1,
            _ => outcome.is_dropped(DropReason::ProbeLimited),
        }
    }
    assert!(answered >= ProbeState::BURST, "{answered}");
    assert!(answered < 500, "{answered}");
}

#[test]
fn what_is_not_authentic_gets_no_answer() {
    let node = probing();
    let right = message(ProbeMessage::PROBE, Candidate::PublicIpip, 600);
    let wrong_key = [KEY[0], KEY[1] ^ 1];
    let messages = [
        right.signed(wrong_key),
        right,
        ProbeMessage {
            sender: *b"somebody",
            ..right
        }
        .signed(KEY),
        ProbeMessage {
            receiver: PEER_ID,
            ..right
        }
        .signed(KEY),
        ProbeMessage {
            magic: [0; 4],
            ..right
        }
        .signed(KEY),
        ProbeMessage { kind: 0, ..right }.signed(KEY),
        ProbeMessage {
            candidate: 8,
            ..right
        }
        .signed(KEY),
        // By a number that no candidate has, in another encapsulation, and between other addresses.
        ProbeMessage {
            candidate: 5,
            ..right
        }
        .signed(KEY),
        ProbeMessage {
            candidate: Candidate::Direct as u8,
            ..right
        }
        .signed(KEY),
        ProbeMessage {
            candidate: Candidate::PrivateIpip as u8,
            ..right
        }
        .signed(KEY),
    ];
    let mut packets: Vec<_> = messages.map(|it| packet(B_PROBE, it).bytes()).into();
    let whole = packet(B_PROBE, right.signed(KEY)).bytes();
    // Another length than the message states, another port, another protocol, from a pod, from a peer without a secret.
    let mut longer = right.signed(KEY).as_bytes().to_vec();
    longer.resize(700, 0);
    packets.push(Ip::udp(B_PROBE, 1, OWN_PROBE, DEFAULT_UDP_PORT, &longer).bytes());
    packets.push(Ip::udp(B_PROBE, 1, OWN_PROBE, 53, &whole[28..]).bytes());
    packets.push(
        Ip::new(B_PROBE, OWN_PROBE, 132)
            .payload(&whole[20..])
            .bytes(),
    );
    packets.push(packet("10.42.5.0", right.signed(KEY)).bytes());
    packets.push(packet(B_POD, right.signed(KEY)).bytes());
    packets.push(Ip::udp(B_PROBE, 1, OWN_PROBE, DEFAULT_UDP_PORT, &[0; 80]).bytes());
    for inner in &packets {
        for (wrap, outer) in WRAPS.iter().flat_map(|wrap| [(wrap, B), (wrap, STRANGER)]) {
            let outcome = node.run(Program::FromUplink, &wrap(outer, OWN, inner));
            outcome.is_dropped(DropReason::ProbeNotAuthentic);
        }
    }
    assert_eq!(
        state(&node, 1, Candidate::PublicIpip),
        ProbeState::default()
    );
    // It was the message that was wrong.
    let outcome = node.run(Program::FromUplink, &WRAPS[0](B, OWN, &whole));
    outcome.is(REDIRECT, &[Counter::ProbeAnswered]);
}

#[test]
fn a_private_probe_and_its_answer_are_valid_only_between_the_addresses_that_they_name() {
    let node = probing();
    let run = |kind, source, destination, outer_source| {
        let message = ProbeMessage {
            source: addr(source),
            destination: addr(destination),
            ..message(kind, Candidate::PrivateIpip, 600)
        };
        let inner = packet(B_PROBE, message.signed(KEY)).bytes();
        node.run(Program::FromUplink, &WRAPS[0](outer_source, OWN, &inner))
    };
    // A machine that has the peer's address in another network, and passes the packet on.
    for (kind, source, destination) in [
        (ProbeMessage::PROBE, B, OWN),
        (ProbeMessage::ANSWER, OWN, B),
    ] {
        run(kind, source, destination, STRANGER).is_dropped(DropReason::ProbeNotAuthentic);
        run(kind, destination, source, B).is_dropped(DropReason::ProbeNotAuthentic);
    }
    run(ProbeMessage::PROBE, B, OWN, B).is(REDIRECT, &[Counter::ProbeAnswered]);
    run(ProbeMessage::ANSWER, OWN, B, B).is(DROP, &[Counter::AnswerReceived]);
}

#[test]
fn a_message_is_valid_only_in_the_encapsulation_of_its_candidate() {
    let node = probing();
    let heads = [
        (WRAPS[0], Candidate::PublicUdp),
        (WRAPS[1], Candidate::PublicIpip),
    ];
    for (wrap, candidate) in heads {
        let inner = probe(B_PROBE, candidate, 600).bytes();
        node.run(Program::FromUplink, &wrap(B, OWN, &inner))
            .is_dropped(DropReason::ProbeNotAuthentic);
    }
    node.from_uplink(&probe(D_PROBE, Candidate::PublicUdp, 600))
        .is_dropped(DropReason::ProbeNotAuthentic);
}

#[test]
fn an_answer_is_remembered_once_and_goes_no_further() {
    let node = probing();
    let answer = ProbeMessage {
        flags: ProbeMessage::ACCEPTED,
        ..message(ProbeMessage::ANSWER, Candidate::PublicUdp, 1400)
    };
    let inner = packet(C_PROBE, answer.signed(KEY)).bytes();
    let outer = WRAPS[1](C, OWN, &inner);
    let outcome = node.run(Program::FromUplink, &outer);
    outcome.is(DROP, &[Counter::AnswerReceived]);
    let found = state(&node, 2, Candidate::PublicUdp);
    assert_eq!(
        (found.answered, found.len, found.flags),
        (1000, 1400, ProbeMessage::ACCEPTED)
    );
    assert_ne!(found.received_at, 0);
    node.run(Program::FromUplink, &outer)
        .is_dropped(DropReason::ProbeReplayed);
    // A probe of this node that comes back is no answer.
    let own = ProbeMessage {
        sender: OWN_ID,
        receiver: PEER_ID,
        ..message(ProbeMessage::PROBE, Candidate::PublicUdp, 600)
    };
    let inner = packet(C_PROBE, own.signed(KEY)).bytes();
    node.run(Program::FromUplink, &WRAPS[1](C, OWN, &inner))
        .is_dropped(DropReason::ProbeNotAuthentic);
}

#[test]
fn without_a_probe_address_or_a_secret_nothing_changes() {
    let mut node = probing();
    let inner = probe(B_PROBE, Candidate::PublicIpip, 600).bytes();
    let outer = WRAPS[0](B, OWN, &inner);
    node.maps
        .probe_secrets
        .set(1, ProbeSecret::default(), 0)
        .unwrap();
    node.run(Program::FromUplink, &outer)
        .is_dropped(DropReason::ProbeNotAuthentic);
    node.configure(|config| config.probe_address = addr("0.0.0.0"));
    node.run(Program::FromUplink, &outer)
        .is_dropped(DropReason::InnerDestinationNotLocal);
    node.run(Program::FromUplink, &WRAPS[0](STRANGER, OWN, &inner))
        .is_dropped(DropReason::UnknownPeer);
}

#[test]
fn the_hosts_probe_takes_the_candidate_that_it_names() {
    let node = probing();
    for (candidate, head, protocol) in [
        (Candidate::PublicIpip, 20, 4),
        (Candidate::PublicUdp, 28, 17),
        (Candidate::Direct, 0, 17),
    ] {
        let sent = ProbeMessage {
            sender: OWN_ID,
            receiver: PEER_ID,
            ..message(ProbeMessage::PROBE, candidate, 600)
        };
        let payload = sent.signed(KEY).as_bytes().to_vec();
        let ip = Ip::udp(OWN_PROBE, 40_000, B_PROBE, DEFAULT_UDP_PORT, &payload);
        let outcome = node.from_host(&ip);
        outcome.is(REDIRECT, &[Counter::ProbeSent]);
        assert_eq!(outcome.packet()[9], protocol);
        assert_eq!(outcome.packet()[head..], ip.bytes());
    }
    // Not by a candidate that the peer does not have.
    let sent = message(ProbeMessage::PROBE, Candidate::PrivateUdp, 600);
    let ip = Ip::udp(OWN_PROBE, 1, B_PROBE, DEFAULT_UDP_PORT, sent.as_bytes());
    node.from_host(&ip).is_dropped(DropReason::PeerUnreachable);
}

/// A pod cannot make its node or another one answer.
#[test]
fn a_pod_cannot_send_a_probe() {
    let node = probing();
    let inner = probe(B_PROBE, Candidate::PublicIpip, 600).bytes();
    let spoofed = node.run(Program::FromPod, &patched(&inner, 0, 0x45));
    spoofed.is_dropped(DropReason::PodSourceSpoofed);
    let own = Ip::udp(POD, 1, B_PROBE, DEFAULT_UDP_PORT, &inner[28..]);
    // It is a packet like any other, and the peer's node has no pod of this address.
    node.from_pod(&own).is(REDIRECT, &[Counter::PodToTunnel]);
    let arrived = Ip::udp(B_POD, 1, OWN_PROBE, DEFAULT_UDP_PORT, &[1; 100]);
    node.from_b(&arrived)
        .is_dropped(DropReason::ProbeNotAuthentic);
}
