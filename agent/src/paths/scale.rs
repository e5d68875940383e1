//! Many peers at once.

use crate::paths::{
    candidate::Candidate,
    peers::{Answer, Offer, Paths},
    simulation::SECOND,
    uses::{Use, Uses},
};
use ipip_abi::Candidate as Number;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const PEERS: u16 = 5000;
const ACTIVE: u16 = 500;
const ROUND_TRIP: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_millis(20);
const ALL: [Number; 4] = [
    Number::PrivateIpip,
    Number::PrivateUdp,
    Number::PublicIpip,
    Number::PublicUdp,
];

/// An answer: when it arrives, of which peer and candidate, when the probe was sent, and its size.
type Underway = (Instant, u16, Number, Instant, u16);

/// A node with many peers, of which the first are active.
struct Cluster {
    now: Instant,
    paths: Paths,
    active: u16,
    answers: BinaryHeap<Reverse<Underway>>,
    probes: u64,
    /// How often the daemon has woken up.
    wakes: u64,
    changes: usize,
}

fn candidate(id: u16, number: Number) -> Candidate {
    Candidate {
        number,
        address: Ipv4Addr::from(0x0a00_0000 + u32::from(id)),
    }
}

impl Cluster {
    /// All peers have a path already.
    fn new(active: u16) -> Self {
        let now = Instant::now();
        let name = |id: u16| format!("n{id}");
        let path = |id| Use {
            path: Some(candidate(id, Number::PrivateIpip)),
            ..Use::default()
        };
        let known: Uses = (1..=PEERS).map(|id| (name(id), path(id))).collect();
        let mut paths = Paths::new(known, now);
        let offer = |id| Offer {
            name: name(id),
            identity: [1; 8],
            candidates: ALL.map(|it| (candidate(id, it), 1480)).into(),
            other_realm: None,
        };
        let offers: BTreeMap<u16, Offer> = (1..=PEERS).map(|id| (id, offer(id))).collect();
        paths.set_offers(offers, now);
        Self {
            now,
            paths,
            active,
            answers: BinaryHeap::new(),
            probes: 0,
            wakes: 0,
            changes: 0,
        }
    }

    /// Lets time pass, as the daemon does: it looks at the traffic twice a second.
    fn run(&mut self, time: Duration, passes: impl Fn(u16, Number) -> bool) {
        let end = self.now + time;
        let mut traffic_at = self.now;
        while self.now < end {
            let now = self.now;
            self.wakes += 1;
            while let Some(Reverse((at, id, number, sent, len))) = self.answers.peek().copied()
                && at <= now
            {
                self.answers.pop();
                let answer = Answer {
                    received: at,
                    is_accepted: true,
                    len,
                };
                self.paths.answered((id, number), sent, answer);
            }
            if traffic_at <= now {
                traffic_at = now + SECOND / 2;
                for id in 1..=self.active {
                    self.paths.sent(id, now);
                }
            }
            let (answers, probes) = (&mut self.answers, &mut self.probes);
            let mut at = now;
            let changes = self.paths.run(now, |id, number, size| {
                *probes += 1;
                // Two probes never have the same time.
                at += Duration::from_nanos(10);
                if passes(id, number) {
                    let len = size.unwrap_or(84);
                    answers.push(Reverse((at + ROUND_TRIP, id, number, at, len)));
                }
                at
            });
            self.changes += changes.len();
            let wake = self.paths.wake().unwrap_or(end).min(traffic_at);
            self.now = wake.max(now + TICK).min(end);
        }
    }

    fn probes_per_second(&mut self, time: Duration, passes: impl Fn(u16, Number) -> bool) -> f64 {
        let before = self.probes;
        self.run(time, passes);
        (self.probes - before) as f64 / time.as_secs_f64()
    }
}

#[test]
fn peers_without_traffic_cost_twenty_five_probes_a_second_and_active_ones_one_each() {
    let mut it = Cluster::new(0);
    let idle = it.probes_per_second(SECOND * 1600, |_, _| true);
    assert!((20.0..30.0).contains(&idle), "{idle}");
    assert_eq!(it.changes, 0);
    // Far more rarely than probes are sent.
    let per_second = it.wakes as f64 / 1600.0;
    assert!(per_second < 7.0, "{per_second}");

    let mut it = Cluster::new(ACTIVE);
    it.run(SECOND * 100, |_, _| true);
    let both = it.probes_per_second(SECOND * 100, |_, _| true);
    assert!(both < f64::from(ACTIVE) * 1.2 + 30.0, "{both}");
    assert_eq!(it.changes, 0);
}

#[test]
fn five_hundred_active_peers_that_fail_at_once_are_all_on_another_path_within_ten_seconds() {
    let mut it = Cluster::new(ACTIVE);
    it.run(SECOND * 60, |_, _| true);
    it.run(SECOND * 10, |id, number| {
        id > ACTIVE || number == Number::PublicUdp
    });
    assert_eq!(it.changes, usize::from(ACTIVE));
    let uses = it.paths.uses();
    let is_left = |id: &u16| {
        let path = uses[&format!("n{id}")].path;
        path == Some(candidate(*id, Number::PublicUdp))
    };
    assert_eq!((1..=ACTIVE).filter(is_left).count(), usize::from(ACTIVE));
}
