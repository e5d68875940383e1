//! The ring buffer of answers: what the agent reads, and what it does not.

use crate::{
    fixture::*,
    probes::{C_PROBE, KEY, message, packet, probing, state},
};
use ipip_abi::{
    Candidate, Counter, DropReason, Program,
    maps::ANSWERS_BYTES,
    probe::{ProbeMessage, ProbeReceipt},
};
use ipip_datapath::Answers;

/// The length that the peer saw.
const LEN: usize = 1400;
/// The outer source that it saw.
const SEEN: &str = "203.0.113.11";
/// Bytes of a receipt in the ring: the kernel puts a header before it.
const ITEM: usize = 8 + size_of::<ProbeReceipt>();

/// The answer of peer C to a probe that this node sent at `sent_at`, signed.
fn answer(sent_at: u64) -> ProbeMessage {
    let message = ProbeMessage {
        flags: ProbeMessage::ACCEPTED,
        sent_at: sent_at.to_be_bytes(),
        seen: addr(SEEN),
        ..message(ProbeMessage::ANSWER, Candidate::PublicUdp, LEN)
    };
    message.signed(KEY)
}

fn receive(node: &Node, message: ProbeMessage) -> Outcome {
    let inner = packet(C_PROBE, message).bytes();
    node.run(Program::FromUplink, &WRAPS[1](C, OWN, &inner))
}

#[test]
fn each_answer_is_in_the_ring_with_its_probe_and_its_time() {
    let node = probing();
    let mut answers = Answers::open(node.pins()).unwrap();
    for sent_at in [1000, 1001] {
        receive(&node, answer(sent_at)).is(DROP, &[Counter::AnswerReceived]);
    }
    let [first, second] = [0; 2].map(|_| answers.next().expect("an answer"));
    assert!(answers.next().is_none());
    let expected = |sent_at, received_at| ProbeReceipt {
        sent_at,
        received_at,
        peer: 2,
        len: LEN as u16,
        seen: addr(SEEN),
        candidate: Candidate::PublicUdp as u8,
        flags: ProbeMessage::ACCEPTED,
        _pad: [0; 6],
    };
    assert_eq!(first, expected(1000, first.received_at));
    assert_eq!(second, expected(1001, second.received_at));
    assert!(0 < first.received_at && first.received_at < second.received_at);
    let state = state(&node, 2, Candidate::PublicUdp);
    assert_eq!(state.received_at, second.received_at);
}

#[test]
fn an_answer_that_is_not_authentic_or_repeated_and_a_probe_are_not_in_the_ring() {
    let node = probing();
    let mut answers = Answers::open(node.pins()).unwrap();
    let changed = ProbeMessage {
        len: [0xff; 2],
        ..answer(1000)
    };
    receive(&node, changed).is_dropped(DropReason::ProbeNotAuthentic);
    assert!(answers.next().is_none());

    receive(&node, answer(1000)).is(DROP, &[Counter::AnswerReceived]);
    assert_eq!(answers.next().map(|it| it.sent_at), Some(1000));
    for old in [1000, 999] {
        receive(&node, answer(old)).is_dropped(DropReason::ProbeReplayed);
    }
    let probe = message(ProbeMessage::PROBE, Candidate::PublicUdp, LEN);
    receive(&node, probe.signed(KEY)).is(REDIRECT, &[Counter::ProbeAnswered]);
    assert!(answers.next().is_none());
}

#[test]
fn a_full_ring_loses_receipts_but_the_last_answer_is_still_remembered() {
    let node = probing();
    let mut answers = Answers::open(node.pins()).unwrap();
    let room = ANSWERS_BYTES as usize / ITEM;
    let last = room as u64 + 100;
    for sent_at in 1..=last {
        receive(&node, answer(sent_at)).is(DROP, &[Counter::AnswerReceived]);
    }
    assert_eq!(state(&node, 2, Candidate::PublicUdp).answered, last);
    // Those that were there first are in the ring. The kernel fills it up to the last byte but one item.
    let kept: Vec<u64> = std::iter::from_fn(|| answers.next())
        .map(|receipt| receipt.sent_at)
        .collect();
    assert!((room - 1..=room).contains(&kept.len()), "{}", kept.len());
    assert!(kept.iter().copied().eq(1..=kept.len() as u64));
    // When it has been read, there is room again.
    receive(&node, answer(last + 1));
    assert_eq!(answers.next().map(|it| it.sent_at), Some(last + 1));
}
