//! Selects the path to a peer.
//!
//! Two mistakes are to be avoided: to stay on a path that delivers nothing, and to change between paths without need, because each
//! change reorders packets. So a path that answers at all is left only for one that is better by itself and has proven to be
//! reliable, for one that clearly loses less, or for one that clearly is nearer.

use crate::paths::{candidate::Candidate, history::History};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A dead path is left for a candidate that has answered so many probes since then. If all candidates lose alike, each answer is as
/// likely to be of the path in use, so chance shows this with a probability of 1 of 256. And when all work again after a failure of
/// the peer, any of them may be the first to answer.
const ANSWERS: usize = 8;
/// If there are better candidates, the first path has answered so many probes, and they had so much time to answer.
const FIRST_ANSWERS: usize = 5;
const FIRST_WAIT: Duration = Duration::from_millis(1500);
/// A better candidate is used after so many probes, of which at most one may be missing.
const FIRST_TRIAL: usize = 15;
/// The number doubles each time that the candidate was left because it did not work, up to this one.
const LONGEST_TRIAL: usize = 60;
/// How long a path that was left because it did not work is not used again: it doubles each time, up to a limit.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A path that was used for so long is trusted as if it had never been left.
const FORGIVEN: Duration = Duration::from_secs(1800);
/// Shortest time between two changes because of losses or round trips.
const HOLD: Duration = Duration::from_secs(120);

/// The candidates of a peer with what is known of them. A node of the map has room for eleven, and most peers have few.
pub type Candidates = BTreeMap<Candidate, Box<History>>;

/// The path in use.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The path.
    pub path: Candidate,
    /// Since when it is used.
    pub since: Instant,
    left: BTreeMap<Candidate, Left>,
}

/// The first path of a peer of which none was proven: the best that works, after the others had time to answer, too.
pub fn first(candidates: &Candidates, now: Instant) -> Option<Candidate> {
    let works = |(_, history): &(&Candidate, &History)| {
        history.probably_works(now) && !history.is_refused()
    };
    let (best, history) = candidates
        .iter()
        .map(|(it, history)| (it, &**history))
        .filter(works)
        .min_by_key(|(it, history)| (it.rank(), history.round_trip(now)))?;
    let is_late = |history: &History| {
        history.answers_since(None) >= FIRST_ANSWERS
            && candidates
                .iter()
                .filter(|(it, _)| it.rank() < best.rank())
                .all(|(_, it)| now.saturating_duration_since(it.began) >= FIRST_WAIT)
    };
    let is_best_of_all = candidates.keys().all(|it| it.rank() >= best.rank());
    (is_best_of_all || is_late(history)).then_some(*best)
}

/// Why a path was left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// It is the first that has proven to work.
    First,
    /// It is no candidate any more.
    Gone,
    /// It gave no answers.
    Dead,
    /// A better candidate has passed its trial.
    Better,
    /// It lost more than another.
    Loss,
    /// Another of the same rank has a shorter round trip.
    RoundTrip,
}

impl Cause {
    /// One phrase that explains it.
    pub fn text(self) -> &'static str {
        match self {
            Self::First => "it is the first that has proven to work",
            Self::Gone => "the one before is no candidate any more",
            Self::Dead => "the one before gave no answers",
            Self::Better => "it is better, and has proven to be reliable",
            Self::Loss => "the one before lost more packets",
            Self::RoundTrip => "its round trip is shorter",
        }
    }
}

/// When a path was left because it did not work.
#[derive(Clone, Copy, Debug)]
struct Left {
    at: Instant,
    times: u32,
}

impl Selection {
    /// Begins with a path that nothing is known of yet.
    pub fn new(path: Candidate, now: Instant) -> Self {
        Self {
            path,
            since: now,
            left: BTreeMap::new(),
        }
    }

    /// Changes the path if what is known at `now` demands it, and says why. The path is one of the candidates.
    pub fn update(&mut self, candidates: &Candidates, now: Instant) -> Option<Cause> {
        let (path, cause) = self.change(candidates, now)?;
        self.left.retain(|it, _| candidates.contains_key(it));
        if matches!(cause, Cause::Dead | Cause::Loss) {
            let is_forgiven = now.saturating_duration_since(self.since) >= FORGIVEN;
            let left = self.left.get(&self.path).filter(|_| !is_forgiven);
            let times = left.map_or(1, |it| it.times.saturating_add(1));
            self.left.insert(self.path, Left { at: now, times });
        }
        self.path = path;
        self.since = now;
        Some(cause)
    }

    /// How long the candidate, which was left because it did not work, will still rest.
    pub fn rest(&self, candidate: &Candidate, now: Instant) -> Option<Duration> {
        let left = self.left.get(candidate)?;
        let rest = FIRST_REST.saturating_mul(doubled(left.times));
        let rest = rest.min(LONGEST_REST);
        let rest = rest.saturating_sub(now.saturating_duration_since(left.at));
        (!rest.is_zero()).then_some(rest)
    }

    /// How many probes the candidate's trial takes.
    pub fn trial(&self, candidate: &Candidate) -> usize {
        let times = self.left.get(candidate).map_or(1, |it| it.times);
        (FIRST_TRIAL.saturating_mul(doubled(times) as usize)).min(LONGEST_TRIAL)
    }

    fn change(&self, candidates: &Candidates, now: Instant) -> Option<(Candidate, Cause)> {
        let current = candidates.get(&self.path)?;
        if current.is_dead(now) {
            return Some((self.working(current, candidates, now)?, Cause::Dead));
        }
        if let Some(path) = self.better(candidates, now) {
            return Some((path, Cause::Better));
        }
        if now.saturating_duration_since(self.since) < HOLD {
            return None;
        }
        let less_loss = || Some((self.with_less_loss(current, candidates, now)?, Cause::Loss));
        let nearer = || Some((self.nearer(current, candidates, now)?, Cause::RoundTrip));
        less_loss().or_else(nearer)
    }

    /// The candidates that could be used instead.
    fn others<'a>(
        &self,
        candidates: &'a Candidates,
    ) -> impl Iterator<Item = (Candidate, &'a History)> {
        let others = candidates.iter().map(|(it, history)| (*it, &**history));
        others.filter(|(it, history)| *it != self.path && !history.is_refused())
    }

    /// The best candidate that answers while the path in use does not.
    fn working(
        &self,
        current: &History,
        candidates: &Candidates,
        now: Instant,
    ) -> Option<Candidate> {
        let since = current.last_answered();
        let working = self.others(candidates);
        let working = working.filter(|(_, history)| history.answers_since(since) >= ANSWERS);
        let best = working.min_by_key(|(it, history)| {
            let rests = self.rest(it, now).is_some();
            (rests, it.rank(), history.round_trip(now))
        });
        best.map(|(it, _)| it)
    }

    /// The best candidate that is better by itself and has passed its trial.
    fn better(&self, candidates: &Candidates, now: Instant) -> Option<Candidate> {
        let better = self.others(candidates);
        let better = better.filter(|(it, history)| {
            it.rank() < self.path.rank() && self.has_passed_trial(it, history, now)
        });
        better.map(|(it, _)| it).min_by_key(Candidate::rank)
    }

    /// The candidate that loses least, if the path in use clearly loses more. Other candidates are probed as often as the path
    /// in use only while it is lossy, so only then there are enough probes to compare, and of the same time.
    fn with_less_loss(
        &self,
        current: &History,
        candidates: &Candidates,
        now: Instant,
    ) -> Option<Candidate> {
        let loss = current.loss(now);
        if !loss.is_lossy() {
            return None;
        }
        let less = self.others(candidates).filter(|(it, history)| {
            loss.clearly_exceeds(history.loss(now)) && self.rest(it, now).is_none()
        });
        let rate = |history: &History| history.loss(now).rate();
        let least = less.min_by(|(a, of_a), (b, of_b)| {
            let by_rate = rate(of_a).total_cmp(&rate(of_b));
            by_rate.then_with(|| a.rank().cmp(&b.rank()))
        });
        least.map(|(it, _)| it)
    }

    /// The nearest candidate of the same rank that is clearly nearer.
    fn nearer(
        &self,
        current: &History,
        candidates: &Candidates,
        now: Instant,
    ) -> Option<Candidate> {
        let nearer = self.others(candidates).filter(|(it, history)| {
            it.rank() == self.path.rank()
                && history.is_nearer_than(current, now)
                && self.has_passed_trial(it, history, now)
        });
        let nearest = nearer.min_by_key(|(_, history)| history.round_trip(now));
        nearest.map(|(it, _)| it)
    }

    fn has_passed_trial(&self, candidate: &Candidate, history: &History, now: Instant) -> bool {
        history.misses(now) == 0
            && history.proven(now) >= self.trial(candidate)
            && self.rest(candidate, now).is_none()
    }
}

/// 1, 2, 4 … for 1, 2, 3 …
fn doubled(times: u32) -> u32 {
    1 << (times - 1).min(16)
}
