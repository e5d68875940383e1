//! A path that works is not left without need.

use crate::paths::{
    candidate::Candidate,
    select::Cause,
    simulation::{Change, SECOND, Simulation, after, all, equal, random},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);
const HOLD: Duration = Duration::from_secs(120);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn round_trips_that_alternate_change_the_path_at_most_once_in_two_minutes(
        period in prop_oneof![1.0_f64..20.0, 20.0_f64..600.0],
        // A round trip that grows by more than 1.7 seconds at once is not distinguished from a dead path.
        (low, high) in (1_u64..100, 1_u64..1500),
        share in 0.1_f64..0.9,
    ) {
        let [a, b] = equal();
        let mut it = Simulation::new(&[a, b], a);
        it.run(HOUR / 2, |candidate, at| {
            let is_high = (at.as_secs_f64() / period).fract() < share;
            after(if is_high == (*candidate == a) { low + high } else { low })
        });
        prop_assert!(are_apart(&it.changes, HOLD), "{:?}", it.changes);
    }

    #[test]
    fn sawtooth_jitter_changes_no_path(
        periods in (prop_oneof![1.0_f64..20.0, 20.0_f64..600.0], prop_oneof![1.0_f64..20.0, 20.0_f64..600.0]),
        shift in 0.0_f64..1.0,
        (low, high) in (1_u64..100, 1_u64..1000),
    ) {
        let [a, b] = equal();
        let mut it = Simulation::new(&[a, b], a);
        it.run(HOUR / 2, |candidate, at| {
            let (period, shift) = if *candidate == a { (periods.0, 0.0) } else { (periods.1, shift) };
            let part = (at.as_secs_f64() / period + shift).fract();
            after(low + (high as f64 * part) as u64)
        });
        prop_assert!(it.changes.is_empty(), "{:?}", it.changes);
    }

    #[test]
    fn a_firewall_that_forgets_makes_each_return_take_longer(
        works in 1_u64..300,
        forgets in 1_u64..60,
        millis in 1_u64..=300,
    ) {
        let [best, other, ..] = all();
        let mut it = Simulation::new(&[best, other], best);
        let (mut opened, mut last, mut closed) = (Duration::ZERO, Duration::ZERO, None);
        it.run(HOUR, |candidate, at| {
            if *candidate == other {
                return after(millis);
            }
            let is_forgotten = at - last >= SECOND * forgets as u32;
            if closed.is_none() && (is_forgotten || at - opened >= SECOND * works as u32) {
                closed = Some(at);
            }
            last = at;
            // Something opens it again, too late for the path in use.
            if closed.is_some_and(|closed| at - closed >= SECOND * 20) {
                (opened, closed) = (at, None);
            }
            after(millis).filter(|_| closed.is_none())
        });
        let absences = it.changes.windows(2).filter(|it| it[1].path == best);
        let absences: Vec<_> = absences.map(|it| (it[1].at - it[0].at).as_secs()).collect();
        for (times, absence) in absences.iter().enumerate() {
            let rest = (5 << times.min(6)).min(300);
            prop_assert!(*absence >= rest, "{absences:?}");
        }
        // What is repaired is used again.
        it.run(SECOND * 420, |_, _| after(millis));
        prop_assert_eq!(it.selection.path, best);
    }
}

#[test]
fn thirty_percent_of_lost_packets_in_each_direction_make_no_path_worse() {
    for seed in 0..2 {
        let changes = changes_with_loss(0.3, all()[3], seed);
        assert!(are_improvements(all()[3], &changes), "{changes:?}");
    }
}

/// Prints how often the property before fails; the environment sets `HOURS` and the lost part, `LOSS`.
#[test]
#[ignore = "takes minutes: run it in release mode"]
fn measure_false_alarms() {
    let hours = std::env::var("HOURS").map_or(2000, |it| it.parse().expect("a number"));
    let loss = std::env::var("LOSS").map_or(0.3, |it| it.parse().expect("a number"));
    let (mut failed, mut by_cause) = (0, BTreeMap::<_, usize>::new());
    for seed in 0..hours {
        let path = all()[seed as usize % 4];
        let changes = changes_with_loss(loss, path, seed ^ 0x5eed_0000);
        failed += usize::from(!are_improvements(path, &changes));
        for change in changes {
            *by_cause.entry(format!("{:?}", change.cause)).or_default() += 1;
        }
    }
    println!("{failed} of {hours} hours failed with {loss} lost; changes: {by_cause:?}");
}

#[test]
fn a_path_that_loses_much_more_than_another_is_left_within_minutes_and_seldom_used_again() {
    let [best, other, ..] = all();
    let mut random = random(1);
    let mut it = Simulation::new(&[best, other], best);
    it.run(SECOND * 600, |_, _| after(20));
    let network =
        |candidate: &Candidate, _| after(20).filter(|_| *candidate == other || random() > 0.3);
    it.run(HOUR * 4, network);
    let first = it.changes[0];
    assert_eq!(first.cause, Cause::Loss);
    assert!(first.at <= SECOND * (600 + 240), "{first:?}");
    assert!(it.changes.len() <= 5, "{:?}", it.changes);
}

#[test]
fn a_nearer_path_of_the_same_rank_is_used_once() {
    let [near, far] = equal();
    let mut it = Simulation::new(&[near, far], far);
    it.run(HOUR, |candidate, _| {
        after(if *candidate == near { 5 } else { 25 })
    });
    assert_eq!(it.changes.len(), 1);
    assert_eq!(it.changes[0].cause, Cause::RoundTrip);
}

#[test]
fn a_peer_that_was_down_keeps_its_path() {
    let [best, ..] = all();
    for offset in 0..20 {
        let mut it = Simulation::new(&all(), best);
        it.run(SECOND * 60, |_, _| after(20));
        let down = SECOND * 100 + SECOND / 20 * offset;
        it.run(down, |_, _| None);
        // The other candidates answer sooner.
        it.run(SECOND * 20, |it, _| {
            after(if *it == best { 200 } else { 1 })
        });
        assert!(it.changes.is_empty(), "{:?}", it.changes);
    }
}

fn changes_with_loss(loss: f64, path: Candidate, seed: u64) -> Vec<Change> {
    let mut random = random(seed);
    let mut it = Simulation::new(&all(), path);
    it.run(HOUR, |_, _| {
        after(20).filter(|_| random() > loss && random() > loss)
    });
    it.changes
}

/// A better candidate may pass its trial by chance, which may happen at most once for each.
fn are_improvements(path: Candidate, changes: &[Change]) -> bool {
    let ranks = changes.iter().map(|it| it.path.rank());
    std::iter::once(path.rank())
        .chain(ranks)
        .is_sorted_by(|a, b| a > b)
}

fn are_apart(changes: &[Change], time: Duration) -> bool {
    changes.windows(2).all(|it| it[1].at - it[0].at >= time)
}
