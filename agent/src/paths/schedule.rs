//! Decides which candidates of a peer are probed now.

use crate::paths::{
    candidate::Candidate,
    history::History,
    select::{Candidates, Selection},
};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

/// Between two probes of a path that carries traffic.
const ACTIVE: Duration = Duration::from_secs(1);
/// Between two probes of a candidate that may become better than the path in use.
const SEARCH: Duration = Duration::from_secs(15);
/// Between two probes of each candidate while answers on the path in use are missing: a dead path is left within three seconds.
const BURST: Duration = Duration::from_millis(30);
/// Between two probes of each candidate of a peer that has just appeared, or whose candidates begin to answer.
const FIRST: Duration = Duration::from_millis(250);
/// For how long a candidate is one of a peer that has just appeared; and for how long it is probed each second after that.
const NEW: Duration = Duration::from_secs(5);
const RECENT: Duration = Duration::from_secs(60);
/// While answers on the path of a peer without traffic are missing, each candidate is probed so many times as often: another path
/// should be in use before there is traffic.
const DOUBTED: u32 = 240;
/// A burst ends so many probes after it has shown that the path is dead. Until then another candidate has answered, or none
/// works.
const AFTER_DEATH: usize = 20;
/// Intervals from this length on vary by half.
const RARE: Duration = Duration::from_secs(60);
/// A candidate on trial that misses more answers in a row is searched again.
const MISSES_ON_TRIAL: usize = 1;

/// What the peer's traffic and the budget of all peers allow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// Whether packets were sent to the peer lately.
    pub is_active: bool,
    /// Between two probes of a candidate that carries no traffic and would not be used if it answered.
    pub idle: Duration,
    /// Between two probes of the path in use if it carries no traffic.
    pub idle_in_use: Duration,
}

/// The candidates to probe at `now`. Without a selection, no candidate has proven to work yet.
pub fn due(
    selection: Option<&Selection>,
    candidates: &Candidates,
    pace: Pace,
    now: Instant,
) -> impl Iterator<Item = Candidate> {
    let phase = Phase::at(selection, candidates, pace, now);
    let due = candidates.iter().filter(move |(candidate, history)| {
        next_probe(candidate, history, phase, selection, pace, now) <= now
    });
    due.map(|(candidate, _)| *candidate)
}

/// When to call [`due`] and [`Selection::update`] again, if no answer arrives until then; none if there is no candidate.
pub fn wake(
    selection: Option<&Selection>,
    candidates: &Candidates,
    pace: Pace,
    now: Instant,
) -> Option<Instant> {
    let phase = Phase::at(selection, candidates, pace, now);
    let probes = candidates
        .iter()
        .map(|(candidate, history)| next_probe(candidate, history, phase, selection, pace, now));
    let miss = selection
        .and_then(|it| candidates.get(&it.path))
        .and_then(|it| it.next_miss(now));
    probes.chain(miss).min()
}

/// A path in use that works: until something else is due, only it is probed, and nothing has to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Calm {
    /// When it is probed next.
    pub probe: Instant,
    /// When something else is due.
    pub others: Instant,
}

impl Calm {
    /// Whether the path in use works, so that [`due`] and [`Selection::update`] have nothing to do but probe it; for as long as
    /// its answers arrive, the peer has traffic, and no other candidate answers.
    pub fn find(
        selection: &Selection,
        candidates: &Candidates,
        pace: Pace,
        now: Instant,
    ) -> Option<Self> {
        let phase = Phase::at(Some(selection), candidates, pace, now);
        if phase != Phase::Working {
            return None;
        }
        let of = Some(selection);
        let next =
            |it: &Candidate, history: &History| next_probe(it, history, phase, of, pace, now);
        let others = candidates.iter().filter(|(it, _)| **it != selection.path);
        let others = others.map(|(it, history)| next(it, history));
        Some(Self {
            probe: next(&selection.path, candidates.get(&selection.path)?),
            others: others.fold(now + SEARCH, Instant::min),
        })
    }

    /// When something is due, or an answer on the path in use will be missing.
    pub fn wake(&self, history: &History, now: Instant) -> Instant {
        let next = self.probe.min(self.others);
        history.next_miss(now).map_or(next, |it| it.min(next))
    }

    /// Records that the path in use was probed.
    pub fn probed(&mut self, selection: &Selection, history: &History, pace: Pace, now: Instant) {
        let of = Some(selection);
        self.probe = next_probe(&selection.path, history, Phase::Working, of, pace, now);
    }
}

/// How closely a peer is observed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// No path is proven: which candidate works must be found.
    Searching,
    /// Some candidates of such a peer answer: which is the best is known soon.
    Choosing,
    /// It has no traffic: no more than that some path probably works.
    Idle,
    /// It has no traffic, and answers on the path in use are missing: a stateful firewall may have closed it, or it is dead.
    Doubting,
    /// The path in use works.
    Working,
    /// The path in use loses much, or is dead and no candidate works: all are compared.
    Comparing,
    /// Answers on the path in use are missing: it must be known soon whether it is dead, and which candidate works.
    Burst,
}

impl Phase {
    fn at(
        selection: Option<&Selection>,
        candidates: &Candidates,
        pace: Pace,
        now: Instant,
    ) -> Self {
        let Some(selection) = selection else {
            let answers = candidates.values().any(|it| it.probably_works(now));
            return if answers {
                Self::Choosing
            } else {
                Self::Searching
            };
        };
        let Some(current) = candidates.get(&selection.path) else {
            return if pace.is_active {
                Self::Comparing
            } else {
                Self::Idle
            };
        };
        let misses = current.misses(now);
        let is_open = misses < current.dead_after() + AFTER_DEATH
            || candidates.values().any(|it| works_since(it, current, now));
        match (pace.is_active, misses) {
            (true, 0) if current.loss(now).is_lossy() => Self::Comparing,
            (true, 0) => Self::Working,
            (true, _) if is_open => Self::Burst,
            (true, _) => Self::Comparing,
            (false, 1..) if is_open => Self::Doubting,
            (false, _) => Self::Idle,
        }
    }
}

/// Whether a candidate begins to work while the path in use is dead, which decides which one is used.
fn works_since(history: &History, current: &History, now: Instant) -> bool {
    history.misses(now) == 0 && history.answers_since(current.last_answered()) > 0
}

fn interval(
    candidate: &Candidate,
    history: &History,
    phase: Phase,
    selection: Option<&Selection>,
    pace: Pace,
    now: Instant,
) -> Duration {
    match phase {
        Phase::Choosing => FIRST,
        Phase::Searching => match now.saturating_duration_since(history.began) {
            age if age < NEW => FIRST,
            age if age < RECENT || pace.is_active => ACTIVE,
            _ => SEARCH.max(pace.idle / 8),
        },
        Phase::Idle if selection.is_some_and(|it| it.path == *candidate) => pace.idle_in_use,
        Phase::Idle => pace.idle,
        Phase::Doubting => FIRST.max(pace.idle / DOUBTED),
        Phase::Burst => BURST.max(history.shortest_interval()),
        Phase::Comparing => ACTIVE,
        Phase::Working => {
            let rank = candidate.rank();
            let better = selection.filter(|it| rank < it.path.rank());
            match better {
                Some(selection) if is_on_trial(candidate, history, selection, now) => ACTIVE,
                Some(_) => SEARCH,
                None if selection.is_some_and(|it| it.path == *candidate) => ACTIVE,
                None if selection.is_some_and(|it| it.path.rank() == rank) => SEARCH,
                None => pace.idle,
            }
        }
    }
}

/// Whether a better candidate shows that it is reliable.
fn is_on_trial(
    candidate: &Candidate,
    history: &History,
    selection: &Selection,
    now: Instant,
) -> bool {
    history.last_answered().is_some()
        && history.misses(now) <= MISSES_ON_TRIAL
        && selection.rest(candidate, now).is_none()
}

/// Intervals vary by an eighth, so that probes never keep step with what they measure, nor those of different peers with each
/// other; long ones vary by half, so that peers that were found together are not probed together again. The first probe comes at
/// any time of the interval, so that an agent that begins does not probe all peers at once.
fn next_probe(
    candidate: &Candidate,
    history: &History,
    phase: Phase,
    selection: Option<&Selection>,
    pace: Pace,
    now: Instant,
) -> Instant {
    let interval = interval(candidate, history, phase, selection, pace, now);
    let mut hasher = DefaultHasher::new();
    let sent = history.last_sent();
    let since = sent.map(|it| it.saturating_duration_since(history.began));
    (candidate, since).hash(&mut hasher);
    let part = (hasher.finish() >> 54) as u32;
    match sent {
        None => history.began + interval / 1024 * part,
        Some(sent) if interval >= RARE => sent + interval / 2 + interval / 1024 * part,
        Some(sent) => sent + interval - interval / 8 / 1024 * part,
    }
}
