//! A path that does not work is left soon, and a better one that works again is used soon.

use crate::paths::{
    candidate::Candidate,
    simulation::{ACTIVE, Answer, IDLE, SECOND, Simulation, after, all, random},
};
use proptest::prelude::*;
use std::time::Duration;

/// A dead path is left within this time.
const FAILOVER: Duration = Duration::from_secs(3);
/// A better path that works again is used within this time.
const RETURN: Duration = Duration::from_secs(60);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_path_that_dies_is_left_within_three_seconds_and_used_again_within_a_minute(
        (millis, of_other) in (1_u64..=300, 1_u64..=300),
        jitter in 0.0_f64..0.2,
        before in 0_u64..900_000,
        outage in 5_000_u64..400_000,
        directions in prop_oneof![Just((false, true)), Just((true, false)), Just((false, false))],
        seed in any::<u64>(),
    ) {
        let [best, _, _, other] = all();
        let mut random = random(seed);
        let mut answer = |candidate: &Candidate| {
            let millis = if *candidate == best { millis } else { of_other };
            after((millis as f64 * (1.0 + jitter * random())) as u64)
        };
        let mut it = Simulation::new(&all(), best);
        it.run(Duration::from_millis(before), |candidate, _| answer(candidate));
        prop_assert!(it.changes.is_empty(), "{:?}", it.changes);

        let died = it.now();
        it.run(Duration::from_millis(outage), |candidate, _| {
            // A probe needs both directions.
            let answers = directions.0 && directions.1;
            let is_alive = *candidate == other || (*candidate == best && answers);
            is_alive.then(|| answer(candidate)).flatten()
        });
        prop_assert_eq!(it.changes.len(), 1);
        prop_assert!(it.changes[0].at - died <= FAILOVER, "{:?} {died:?}", it.changes);
        prop_assert_eq!(it.selection.path, other);

        let works = it.now();
        it.run(RETURN, |candidate, _| answer(candidate));
        prop_assert_eq!(it.selection.path, best, "{:?} {:?}", it.changes, works);
    }

    #[test]
    fn a_path_that_dies_again_and_again_is_left_within_three_seconds_each_time(
        millis in 1_u64..=300,
        works in prop::array::uniform5(20_000_u64..400_000),
        outages in prop::array::uniform5(4_000_u64..100_000),
    ) {
        let [best, _, _, other] = all();
        let mut it = Simulation::new(&all(), best);
        for (works, outage) in works.into_iter().zip(outages) {
            it.run(Duration::from_millis(works), |candidate, _| {
                after(millis).filter(|_| *candidate == best || *candidate == other)
            });
            it.run(FAILOVER, |candidate, _| after(millis).filter(|_| *candidate == other));
            prop_assert_eq!(it.selection.path, other, "{:?}", it.changes);
            it.run(Duration::from_millis(outage), |candidate, _| {
                after(millis).filter(|_| *candidate == other)
            });
        }
    }

    #[test]
    fn a_dead_path_is_left_in_time_although_all_others_lose_packets(
        millis in 1_u64..=200,
        loss in 0.0_f64..0.3,
        seed in any::<u64>(),
    ) {
        let best = all()[0];
        let mut random = random(seed);
        let mut answer = || after(millis).filter(|_| random() > loss && random() > loss);
        let mut it = Simulation::new(&all(), best);
        it.run(SECOND * 200, |_, _| answer());
        it.run(FAILOVER, |candidate, _| answer().filter(|_| *candidate != best));
        prop_assert!(it.selection.path != best);
    }

    #[test]
    fn a_path_that_died_while_idle_is_left_within_three_seconds_of_traffic(
        millis in 1_u64..=300,
        before in 0_u64..300,
        dead in 0_u64..7200,
        pause in 0_u64..60_000,
    ) {
        let [best, other, ..] = all();
        let mut it = Simulation::new(&[best, other], best);
        it.pace = IDLE;
        it.run(SECOND * before as u32, |_, _| after(millis));
        let dies = |candidate: &Candidate, _| if *candidate == other { after(millis) } else { None };
        it.run(SECOND * dead as u32 + Duration::from_millis(pause), dies);
        let first_packet = it.now();
        it.pace = ACTIVE;
        it.run(FAILOVER, dies);
        prop_assert_eq!(it.selection.path, other, "{:?}", first_packet);
    }

    #[test]
    fn a_path_that_died_while_idle_is_left_without_traffic(
        millis in 1_u64..=300,
        before in 0_u64..300_000,
    ) {
        let [best, other, ..] = all();
        let mut it = Simulation::new(&[best, other], best);
        it.pace = IDLE;
        it.run(Duration::from_millis(before), |_, _| after(millis));
        it.run(IDLE.idle_in_use + SECOND * 10, |candidate, _| {
            after(millis).filter(|_| *candidate == other)
        });
        prop_assert_eq!(it.selection.path, other);
    }

    #[test]
    fn what_is_not_accepted_is_never_selected(
        accepted in prop::array::uniform4(any::<bool>()),
        first in 0_usize..4,
    ) {
        let mut it = Simulation::new(&all(), all()[first]);
        let is_accepted = |candidate: &Candidate| {
            accepted[all().iter().position(|it| it == candidate).expect("one of all")]
        };
        let network = |candidate: &Candidate, _| {
            after(20).map(|answer| Answer { is_accepted: is_accepted(candidate), ..answer })
        };
        it.run(SECOND * 90, network);
        for change in &it.changes {
            prop_assert!(is_accepted(&change.path), "{:?}", it.changes);
        }
        let is_used = is_accepted(&it.selection.path);
        prop_assert!(is_used || !it.candidates.keys().any(is_accepted), "{:?}", it.changes);
    }
}

#[test]
fn when_no_path_works_the_first_that_works_again_is_used_within_three_seconds() {
    let [best, other, ..] = all();
    for offset in 0..20 {
        let mut it = Simulation::new(&all(), best);
        it.run(SECOND * 60, |_, _| after(20));
        it.run(SECOND * 100 + SECOND / 20 * offset, |_, _| None);
        it.run(FAILOVER, |it, _| after(300).filter(|_| *it == other));
        assert_eq!(it.selection.path, other);
    }
}
