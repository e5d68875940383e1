//! Selection and schedule together, on simulated networks.

use crate::paths::{
    candidate::Candidate,
    history::History,
    schedule::{Pace, due, wake},
    select::{Candidates, Cause, Selection},
};
use ipip_abi::Candidate as Number;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const IDLE: Pace = Pace {
    is_active: false,
    idle: Duration::from_secs(60),
    idle_in_use: Duration::from_secs(25),
};
pub(super) const ACTIVE: Pace = Pace {
    is_active: true,
    ..IDLE
};
/// How late a caller's timer may be.
const TICK: Duration = Duration::from_millis(20);

/// The answer to a probe.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) round_trip: Duration,
    pub(super) is_accepted: bool,
}

/// The path was changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) at: Duration,
    pub(super) path: Candidate,
    pub(super) cause: Cause,
}

/// A peer and its caller.
pub(super) struct Simulation {
    start: Instant,
    now: Instant,
    pub(super) pace: Pace,
    pub(super) candidates: Candidates,
    pub(super) selection: Selection,
    /// When it arrives, of which candidate, when the probe was sent, whether the peer accepts data.
    answers: BinaryHeap<Reverse<(Instant, Candidate, Instant, bool)>>,
    /// When probes were sent.
    pub(super) probes: Vec<(Duration, Candidate)>,
    pub(super) changes: Vec<Change>,
}

impl Simulation {
    pub(super) fn new(candidates: &[Candidate], path: Candidate) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            pace: ACTIVE,
            candidates: candidates
                .iter()
                .map(|it| (*it, Box::new(History::new(start))))
                .collect(),
            selection: Selection::new(path, start),
            answers: BinaryHeap::new(),
            probes: Vec::new(),
            changes: Vec::new(),
        }
    }

    pub(super) fn instant(&self) -> Instant {
        self.now
    }

    pub(super) fn now(&self) -> Duration {
        self.now - self.start
    }

    /// Lets `time` pass. `network` says what becomes of a probe that is sent at a time.
    pub(super) fn run(
        &mut self,
        time: Duration,
        mut network: impl FnMut(&Candidate, Duration) -> Option<Answer>,
    ) {
        let end = self.now + time;
        loop {
            self.act(&mut network);
            let timer = wake(Some(&self.selection), &self.candidates, self.pace, self.now);
            let timer = timer.map_or(end, |it| it.max(self.now + TICK));
            let answer = self.next_answer().unwrap_or(end);
            self.now = timer.min(answer).min(end);
            if self.now == end {
                return;
            }
        }
    }

    fn next_answer(&self) -> Option<Instant> {
        self.answers.peek().map(|it| it.0.0)
    }

    fn act(&mut self, network: &mut impl FnMut(&Candidate, Duration) -> Option<Answer>) {
        while self.next_answer().is_some_and(|it| it <= self.now) {
            let Some(Reverse((arrives, candidate, sent, is_accepted))) = self.answers.pop() else {
                break;
            };
            if let Some(history) = self.candidates.get_mut(&candidate) {
                history.answered(sent, arrives, is_accepted);
            }
        }
        let at = self.now();
        if let Some(cause) = self.selection.update(&self.candidates, self.now) {
            let path = self.selection.path;
            self.changes.push(Change { at, path, cause });
        }
        let due: Vec<_> =
            due(Some(&self.selection), &self.candidates, self.pace, self.now).collect();
        for candidate in due {
            self.probes.push((at, candidate));
            if let Some(history) = self.candidates.get_mut(&candidate) {
                history.sent(self.now);
            }
            if let Some(answer) = network(&candidate, at) {
                let arrives = self.now + answer.round_trip;
                let answer = (arrives, candidate, self.now, answer.is_accepted);
                self.answers.push(Reverse(answer));
            }
        }
    }
}

pub(super) fn candidate(number: Number) -> Candidate {
    Candidate {
        number,
        address: Ipv4Addr::new(10, 0, 0, 1),
    }
}

/// The usual candidates, the best first.
pub(super) fn all() -> [Candidate; 4] {
    [
        candidate(Number::PrivateIpip),
        candidate(Number::PrivateUdp),
        candidate(Number::PublicIpip),
        candidate(Number::PublicUdp),
    ]
}

/// Two candidates of the same rank.
pub(super) fn equal() -> [Candidate; 2] {
    let it = candidate(Number::PrivateIpip);
    let address = Ipv4Addr::new(10, 1, 0, 1);
    [it, Candidate { address, ..it }]
}

/// An answer after milliseconds.
pub(super) fn after(millis: u64) -> Option<Answer> {
    Some(Answer {
        round_trip: Duration::from_millis(millis),
        is_accepted: true,
    })
}

/// Numbers from 0 to 1.
pub(super) fn random(mut state: u64) -> impl FnMut() -> f64 {
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such numbers have short periods, and nearby seeds begin alike.
        let mixed = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 33) as f64 / (1_u64 << 31) as f64
    }
}
