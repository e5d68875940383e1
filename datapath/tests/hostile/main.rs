//! The hostile-packet campaign: random packets go through the programs, and each verdict is compared with an
//! independent [model]. In a [conversation], earlier packets decide about later ones ([flows]). A packet whose verdict
//! differs is stored as a file; move it to `stored/`, where it is a test.
//!
//! `IPIP_HOSTILE_PACKETS` sets the number of packets, `IPIP_HOSTILE_SEED` repeats a run.

mod campaign;
mod conversation;
mod flows;
mod generate;
mod ipv4;
mod model;
mod object;
mod peer_node;
mod sequences;
mod stored;
mod wire;
mod world;

use campaign::Campaign;
use fastrand::Rng;
use generate::Case;
use ipip_abi::Program;
use std::{env, iter, path::Path};

/// Packets of a run, unless `IPIP_HOSTILE_PACKETS` names another number.
const PACKETS: usize = 100_000;
/// One packet out of so many also goes over real interfaces.
const PER_FRAME: usize = 10;
/// One packet out of so many is a large one in a tunnel.
const PER_LARGE: usize = 50;
/// One packet out of so many is one of a conversation.
const PER_CONVERSATION: usize = 4;
/// Cases that are made at once.
const CHUNK: usize = 4096;
/// Failures that are reported at most.
const REPORTED: usize = 20;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// Begins a run with one packet out of `per`, and prints what repeats it. Returns their number and the seed.
fn begin(per: usize, what: &str) -> (usize, u64, Rng) {
    let count = variable("IPIP_HOSTILE_PACKETS").unwrap_or(PACKETS) / per;
    let seed = variable("IPIP_HOSTILE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{count} {what}, IPIP_HOSTILE_SEED={seed}");
    (count, seed, Rng::with_seed(seed))
}

#[test]
fn every_verdict_on_a_random_packet_is_the_models() {
    let (packets, seed, mut rng) = begin(1, "packets");
    let mut campaign = Campaign::new().expect("the datapath loads (needs root and bpffs)");
    let mut failed = Vec::new();
    let mut left = packets;
    while left > 0 && failed.len() < REPORTED {
        let foreign_ipip = rng.u8(..8) == 0;
        let case = |_| Case {
            foreign_ipip,
            ..generate::case(&mut rng)
        };
        let cases: Vec<_> = (0..left.min(CHUNK)).map(case).collect();
        left -= cases.len();
        failed.extend(campaign.run(&cases).expect("the campaign runs"));
    }
    for (number, (case, difference)) in failed.iter().take(REPORTED).enumerate() {
        report(
            std::slice::from_ref(case),
            &format!("{seed}-{number}"),
            difference,
        );
    }
    assert!(
        failed.is_empty(),
        "{} packets, IPIP_HOSTILE_SEED={seed}",
        failed.len()
    );
}

/// Prints a difference, and writes the packets that show it into a file.
fn report(cases: &[Case], name: &str, difference: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    let file = stored::store(cases, &folder, name).expect("the file is written");
    println!(
        "{}:\n{}{difference}\n",
        file.display(),
        stored::to_text(cases)
    );
}

#[test]
fn every_verdict_on_a_random_packet_of_a_conversation_follows_its_flow() {
    let (packets, seed, mut rng) = begin(PER_CONVERSATION, "packets in conversations");
    let mut campaign = Campaign::new().expect("the datapath loads (needs root and bpffs)");
    let (mut sent, mut failed) = (0, 0);
    while sent < packets && failed < REPORTED {
        let cases = conversation::conversation(&mut rng);
        sent += cases.len();
        if let Some(difference) = campaign.run_sequence(&cases).expect("the sequence runs") {
            report(&cases, &format!("{seed}-sequence-{failed}"), &difference);
            failed += 1;
        }
    }
    campaign.keeps_nothing().expect("each flow is the model's");
    assert_eq!(failed, 0, "conversations, IPIP_HOSTILE_SEED={seed}");
}

#[test]
fn every_random_frame_over_real_interfaces_arrives_where_the_model_says() {
    let (frames, seed, mut rng) = begin(PER_FRAME, "frames");
    let mut wire = wire::Wire::new().expect("the interfaces are made (needs root and bpffs)");
    let mut failed = 0;
    // The host sends none of the frames itself.
    let is_sent = |case: &Case| ![Program::FromHost, Program::FromFarEnd].contains(&case.program);
    for _ in 0..frames {
        let case = iter::repeat_with(|| generate::case(&mut rng)).find(is_sent);
        let case = case.expect("the iterator has no end");
        let frame = wire::frame(&mut rng, case, wire.largest);
        if let Err(difference) = wire.check(&frame) {
            let (vlans, handling) = (frame.vlans, frame.handling);
            println!(
                "{}{vlans:?} {handling:?}\n{difference:#}\n",
                frame.case.to_text()
            );
            failed += 1;
        }
        if failed == REPORTED {
            break;
        }
    }
    assert_eq!(failed, 0, "frames, IPIP_HOSTILE_SEED={seed}");
}

#[test]
fn every_random_large_packet_of_a_peer_arrives_where_the_model_says() {
    let (frames, seed, mut rng) = begin(PER_LARGE, "large packets");
    let wire = wire::Wire::new().expect("the interfaces are made (needs root and bpffs)");
    let mut node = peer_node::PeerNode::new(wire).expect("the peer's node is made");
    for number in 0..frames {
        let large = node.large(&mut rng);
        if let Err(difference) = node.check(&large) {
            panic!("packet {number}, IPIP_HOSTILE_SEED={seed}: {large:?}\n{difference:#}");
        }
    }
}

#[test]
fn every_stored_packet_gets_the_verdict_of_the_model() {
    let mut campaign = Campaign::new().expect("the datapath loads (needs root and bpffs)");
    for (name, cases) in stored::all().expect("the stored cases are readable") {
        let difference = campaign.run_sequence(&cases).expect("the case runs");
        assert_eq!(difference, None, "{name}");
    }
}

#[test]
fn a_stored_case_is_read_as_it_was_written() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..100 {
        let case = generate::case(&mut rng);
        assert_eq!(Case::from_text(&case.to_text()).unwrap(), case);
    }
}
