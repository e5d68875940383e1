//! The hostile-packet campaign: random packets go through the programs, and each verdict is compared with an
//! independent [model]. A packet whose verdict differs is stored as a file; move it to `stored/`, where it is a test.
//!
//! `IPIP_HOSTILE_PACKETS` sets the number of packets, `IPIP_HOSTILE_SEED` repeats a run.

mod campaign;
mod generate;
mod ipv4;
mod model;
mod stored;
mod wire;
mod world;

use campaign::Campaign;
use fastrand::Rng;
use std::{env, path::Path};

/// Packets of a run, unless `IPIP_HOSTILE_PACKETS` names another number.
const PACKETS: usize = 100_000;
/// One packet out of so many also goes over real interfaces.
const PER_FRAME: usize = 10;
/// Cases that are made at once.
const CHUNK: usize = 4096;
/// Failures that are reported at most.
const REPORTED: usize = 20;

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

#[test]
fn every_verdict_on_a_random_packet_is_the_models() {
    let packets = variable("IPIP_HOSTILE_PACKETS").unwrap_or(PACKETS);
    let seed: u64 = variable("IPIP_HOSTILE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{packets} packets, IPIP_HOSTILE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut campaign = Campaign::new().expect("the datapath loads (needs root and bpffs)");
    let mut failed = Vec::new();
    let mut left = packets;
    while left > 0 && failed.len() < REPORTED {
        let foreign_ipip = rng.u8(..8) == 0;
        let case = |_| generate::Case {
            foreign_ipip,
            ..generate::case(&mut rng)
        };
        let cases: Vec<_> = (0..left.min(CHUNK)).map(case).collect();
        left -= cases.len();
        failed.extend(campaign.run(&cases).expect("the campaign runs"));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    for (number, (case, difference)) in failed.iter().take(REPORTED).enumerate() {
        let file = case
            .store(&folder, &format!("{seed}-{number}"))
            .expect("the file is written");
        println!("{}:\n{}{difference}\n", file.display(), case.to_text());
    }
    assert!(
        failed.is_empty(),
        "{} packets, IPIP_HOSTILE_SEED={seed}",
        failed.len()
    );
}

#[test]
fn every_random_frame_over_real_interfaces_arrives_where_the_model_says() {
    let frames = variable("IPIP_HOSTILE_PACKETS").unwrap_or(PACKETS) / PER_FRAME;
    let seed: u64 = variable("IPIP_HOSTILE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{frames} frames, IPIP_HOSTILE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut wire = wire::Wire::new().expect("the interfaces are made (needs root and bpffs)");
    let mut failed = 0;
    for _ in 0..frames {
        let case = generate::case(&mut rng);
        if case.program == ipip_abi::Program::FromHost {
            continue;
        }
        let frame = wire::frame(&mut rng, case);
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
fn every_stored_packet_gets_the_verdict_of_the_model() {
    let mut campaign = Campaign::new().expect("the datapath loads (needs root and bpffs)");
    for (name, case) in stored::all().expect("the stored cases are readable") {
        let failed = campaign.run(&[case]).expect("the case runs");
        assert!(failed.is_empty(), "{name}: {}", failed[0].1);
    }
}

#[test]
fn a_stored_case_is_read_as_it_was_written() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..100 {
        let case = generate::case(&mut rng);
        assert_eq!(generate::Case::from_text(&case.to_text()).unwrap(), case);
    }
}
