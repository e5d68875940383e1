//! How many probes are sent, and when.

use crate::paths::{
    candidate::Candidate,
    history::History,
    schedule::{Pace, due, wake},
    select::{Candidates, Selection},
    simulation::{IDLE, SECOND, Simulation, after, all, candidate, random},
};
use ipip_abi::Candidate as Number;
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const PEERS: u32 = 5000;

#[test]
fn a_healthy_path_costs_about_one_probe_a_second() {
    let used = all()[3];
    let mut it = Simulation::new(&all(), used);
    it.run(SECOND * 600, |candidate, _| {
        after(20).filter(|_| *candidate == used)
    });
    let of_path = it.probes.iter().filter(|(_, it)| *it == used).count();
    assert!((590..=660).contains(&of_path), "{of_path}");
    // Three better candidates, every 15 seconds.
    let of_others = it.probes.len() - of_path;
    assert!((100..=150).contains(&of_others), "{of_others}");

    let mut it = Simulation::new(&all(), all()[0]);
    it.run(SECOND * 600, |_, _| after(20));
    assert!(it.probes.len() <= 700, "{}", it.probes.len());
}

#[test]
fn a_burst_is_short() {
    let mut it = Simulation::new(&all(), all()[0]);
    it.run(SECOND * 60, |_, _| after(300));
    let before = it.probes.len();
    it.run(SECOND * 60, |_, _| None);
    let bursts = 4 * 64;
    let probes = it.probes.len() - before;
    assert!(probes <= bursts + 4 * 70, "{probes}");
}

#[test]
fn an_idle_peer_that_is_down_costs_few_more_probes_than_one_that_is_up() {
    let mut it = Simulation::new(&all(), all()[0]);
    it.pace = IDLE;
    it.run(SECOND * 3600, |_, _| after(20));
    let up = it.probes.len();
    assert!((330..=400).contains(&up), "{up}");
    it.run(SECOND * 3600, |_, _| None);
    let down = it.probes.len() - up;
    assert!(down <= up + 4 * 50, "{down}");
}

#[test]
fn a_dead_path_and_others_that_hardly_answer_do_not_make_a_burst_without_end() {
    let [best, ..] = all();
    let mut random = random(1);
    let mut it = Simulation::new(&all(), best);
    it.run(SECOND * 600, |it, _| {
        after(20).filter(|_| *it != best && random() < 0.02)
    });
    let per_second = it.probes.len() / 600;
    assert!(per_second <= 10, "{per_second}");
}

/// How often each of 5,000 peers without traffic is probed in each of `N` periods. Its history is `history` at the beginning.
fn probes_of_idle_peers<const N: usize>(
    interval: Duration,
    period: Duration,
    history: impl Fn(Instant) -> History,
) -> [u32; N] {
    let pace = Pace {
        idle: interval,
        idle_in_use: interval,
        ..IDLE
    };
    let start = Instant::now();
    let mut counts = [0_u32; N];
    for peer in 0..PEERS {
        let candidate = Candidate {
            address: Ipv4Addr::from(0x0a00_0000 + peer),
            ..candidate(Number::PrivateIpip)
        };
        let mut candidates = Candidates::from([(candidate, Box::new(history(start)))]);
        let selection = Selection::new(candidate, start);
        let mut now = start;
        while let Some(next) = wake(Some(&selection), &candidates, pace, now) {
            now = next;
            let number = (now - start).as_nanos() / period.as_nanos();
            let Some(count) = counts.get_mut(number as usize) else {
                break;
            };
            let is_due = due(Some(&selection), &candidates, pace, now).count() == 1;
            let history = candidates.get_mut(&candidate).expect("the candidate");
            if is_due {
                *count += 1;
                history.sent(now);
                history.answered(now, now + SECOND / 50, true);
            }
        }
    }
    counts
}

#[test]
fn idle_peers_are_probed_rarely_and_not_at_once() {
    let in_second: [u32; 200] = probes_of_idle_peers(IDLE.idle, SECOND, History::new);
    let sum: u32 = in_second.iter().sum();
    assert!((16_000..=18_500).contains(&sum), "{sum}");
    assert!(in_second.iter().all(|it| *it <= 250), "{in_second:?}");
}

/// Thousands of peers that are found within seconds would be probed again in a burst, after a time that is the longer the more
/// there are.
#[test]
fn peers_that_were_found_together_are_not_probed_together_again() {
    const MINUTES: usize = 60;
    let in_minute: [u32; MINUTES] = probes_of_idle_peers(SECOND * 800, SECOND * 60, |start| {
        let mut history = History::new(start);
        history.sent(start);
        history.answered(start, start + SECOND / 50, true);
        history
    });
    let mean = PEERS * 60 / 800;
    let most = in_minute.iter().max().copied().unwrap_or_default();
    assert!(most < mean * 3 / 2, "{in_minute:?}");
    let sum: u32 = in_minute.iter().sum();
    let expected = mean * MINUTES as u32;
    assert!(
        expected * 8 / 10 < sum && sum < expected * 11 / 10,
        "{sum} of {expected}"
    );
}

#[test]
fn probes_do_not_keep_step_with_what_they_measure() {
    let [path, ..] = all();
    let mut it = Simulation::new(&[path], path);
    it.run(SECOND * 100, |_, _| after(1));
    let parts = it.probes.iter().map(|(at, _)| at.subsec_millis() / 100);
    let parts: BTreeSet<_> = parts.collect();
    assert_eq!(parts.len(), 10);
    let intervals = it.probes.windows(2).map(|it| it[1].0 - it[0].0);
    let (shortest, longest) = (intervals.clone().min(), intervals.max());
    assert!(longest.unwrap_or_default() > shortest.unwrap_or_default() + SECOND / 20);
}
