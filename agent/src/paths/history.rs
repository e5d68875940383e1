//! What probes have shown of a candidate.

use crate::paths::{loss::Loss, minutes::Minutes, mtu::Patience};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Probes whose answers are recognised. Between two probes must be at least [`History::shortest_interval`], so an answer that
/// is not missing yet always finds its probe here; and one that is late shows for some time that the path is slow, not dead.
const RECENT: usize = 64;
/// An answer is missing after a time within these limits.
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// The same before any answer.
const FIRST_WAIT: Duration = Duration::from_millis(400);

/// A path is dead if so many answers in a row are missing that a path with its usual loss shows this with at most this
/// probability.
const FALSE_ALARM: f64 = 1e-8;
/// And only after so much time, as long as a failure allows to wait: many interruptions are shorter.
const SILENCE: Duration = Duration::from_millis(1700);
/// The loss, of probes or their answers, that each path is assumed to have at least; and at most, because also a path that
/// nearly always loses must be left at some time.
const LEAST_LOSS: f64 = 0.5;
const MOST_LOSS: f64 = 0.75;
/// So many missing answers in a row, with the least loss, have a probability of less than a false alarm.
const DEAD_AFTER: usize = 27;
/// So many tries are all lost by chance with this probability, unless they would be more than this.
const CHANCE: f64 = 0.003;
const MOST_TRIES: u32 = 6;
/// A candidate that misses fewer answers in a row probably works.
const SILENT: usize = 3;
/// Answers over which the usual loss is averaged.
const AVERAGED: f64 = 64.0;

/// The last probes of a candidate.
#[derive(Clone, Debug)]
pub struct History {
    /// When it began.
    pub began: Instant,
    /// When the last [`RECENT`] probes were sent, in nanoseconds since it began, the newest first.
    sent: VecDeque<u64>,
    /// Whether the last 128 probes were answered; bit 0 is the newest.
    answered: u128,
    /// How many bits of `answered` are probes.
    count: u8,
    /// The last probes in a row that have no answer, be it missing or not.
    unanswered: usize,
    /// When the first probe after the last answered one was sent.
    silent_since: Option<Instant>,
    last_answered: Option<Instant>,
    last_refused: Option<Instant>,
    round_trip: Option<RoundTrip>,
    /// Probes that it usually takes to get an answer.
    probes_per_answer: f64,
    minutes: Minutes,
}

/// The mean round trip and its mean deviation, as in RFC 6298.
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    mean: Duration,
    deviation: Duration,
}

impl History {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            sent: VecDeque::new(),
            answered: 0,
            count: 0,
            unanswered: 0,
            silent_since: None,
            last_answered: None,
            last_refused: None,
            round_trip: None,
            probes_per_answer: 1.0,
            minutes: Minutes::new(now),
        }
    }

    /// Records that a probe was sent. Probes are sent at different times.
    pub fn sent(&mut self, at: Instant) {
        self.silent_since = self.silent_since.or(Some(at));
        self.sent.truncate(RECENT - 1);
        self.sent.push_front(self.nanos(at));
        self.unanswered = self.unanswered.saturating_add(1);
        self.answered <<= 1;
        self.count = self.count.saturating_add(1).min(128);
    }

    /// Records the answer to the probe that was sent at this time. `is_accepted` says that the peer accepts data from the
    /// probe's outer source; an answer without it is as good as none, because the path would deliver nothing.
    /// False if it was another process that sent this probe, or it was too long ago.
    pub fn answered(&mut self, sent: Instant, now: Instant, is_accepted: bool) -> bool {
        let nanos = self.nanos(sent);
        let Some(index) = self.sent.iter().position(|it| *it == nanos) else {
            return false;
        };
        if self.answered & (1 << index) != 0 {
            return false;
        }
        if !is_accepted {
            self.last_refused = self.last_refused.max(Some(sent));
            return true;
        }
        // Of this probe and the unanswered ones before it. An answer that a newer one has overtaken was counted as lost.
        let probes = self.unanswered.saturating_sub(index);
        let was_alive = probes <= self.dead_after();
        if probes > 0 {
            self.unanswered = index;
            let newer = index.checked_sub(1);
            self.silent_since = newer.map(|it| self.instant(self.sent[it]));
        }
        self.answered |= 1 << index;
        self.last_answered = self.last_answered.max(Some(sent));
        let round_trip = now.saturating_duration_since(sent);
        self.round_trip = Some(RoundTrip::after(self.round_trip, round_trip));
        // While a path is dead, probes show nothing of its usual loss.
        let probes = if was_alive { probes } else { 1 };
        if probes > 0 {
            self.probes_per_answer += (probes as f64 - self.probes_per_answer) / AVERAGED;
        }
        let probes = u16::try_from(probes).unwrap_or(u16::MAX);
        self.minutes.record(now, round_trip, probes);
        true
    }

    /// When the last probe was sent.
    pub fn last_sent(&self) -> Option<Instant> {
        self.sent.front().map(|it| self.instant(*it))
    }

    /// When the last probe that was answered was sent.
    pub fn last_answered(&self) -> Option<Instant> {
        self.last_answered
    }

    /// Whether it has answered and misses few answers in a row.
    pub fn probably_works(&self, now: Instant) -> bool {
        self.last_answered.is_some() && self.misses(now) < SILENT
    }

    /// Whether the peer's last answer said that it does not accept data on this path.
    pub fn is_refused(&self) -> bool {
        self.last_refused > self.last_answered
    }

    /// How many probes that were sent later than this were answered, as far as they are among the recent ones.
    pub fn answers_since(&self, since: Option<Instant>) -> usize {
        let since = since.map(|it| self.nanos(it));
        let later = self.sent.iter().take_while(|it| Some(**it) > since).count();
        (self.answered & ones(later)).count_ones() as usize
    }

    /// The probes since the last answered one whose answers are missing.
    pub fn misses(&self, now: Instant) -> usize {
        self.unanswered.saturating_sub(self.open(now))
    }

    /// Whether the path delivers nothing.
    pub fn is_dead(&self, now: Instant) -> bool {
        let is_long = |since| now.saturating_duration_since(since) >= SILENCE;
        self.silent_since.is_some_and(is_long) && self.misses(now) >= self.dead_after()
    }

    /// The number of missing answers in a row that usual loss does not explain.
    pub fn dead_after(&self) -> usize {
        let loss = 1.0 - 1.0 / self.probes_per_answer;
        if loss <= LEAST_LOSS {
            return DEAD_AFTER;
        }
        (FALSE_ALARM.ln() / loss.min(MOST_LOSS).ln()).ceil() as usize
    }

    /// Among how many of the last probes at most one answer is missing. A probe that may still be answered does not count.
    pub fn proven(&self, now: Instant) -> usize {
        let open = self.open(now);
        let answered = self.answered >> open;
        let newer = answered.trailing_ones();
        let older = answered.checked_shr(newer + 1).unwrap_or(0);
        let proven = (newer + 1 + older.trailing_ones()) as usize;
        proven.min(usize::from(self.count) - open)
    }

    /// What was lost in the last minutes.
    pub fn loss(&self, now: Instant) -> Loss {
        self.minutes.loss(now)
    }

    /// The shortest round trip of the last minutes.
    pub fn round_trip(&self, now: Instant) -> Option<Duration> {
        self.minutes.shortest(now)
    }

    /// Whether the round trip was clearly shorter than the other's in all of the last minutes.
    pub fn is_nearer_than(&self, other: &Self, now: Instant) -> bool {
        self.minutes.are_nearer_than(&other.minutes, now)
    }

    /// When the next answer will be missing, if none arrives until then.
    pub fn next_miss(&self, now: Instant) -> Option<Instant> {
        let waiting = self.open(now).min(self.unanswered);
        let oldest = self.sent.get(waiting.checked_sub(1)?)?;
        Some(self.instant(*oldest) + self.wait())
    }

    /// The shortest time between two probes: all probes whose answers are not missing yet fit into the recent ones.
    pub fn shortest_interval(&self) -> Duration {
        self.wait() / (RECENT as u32 - 2)
    }

    /// The last probes whose answers would not be late yet.
    fn open(&self, now: Instant) -> usize {
        let wait = self.wait();
        let is_open = |it: &&u64| now.saturating_duration_since(self.instant(**it)) < wait;
        self.sent.iter().take_while(is_open).count()
    }

    /// What a search on this path has to wait for.
    pub fn patience(&self) -> Patience {
        let loss = (1.0 - 1.0 / self.probes_per_answer).clamp(0.05, MOST_LOSS);
        let tries = (CHANCE.ln() / loss.ln()).ceil() as u32;
        Patience {
            wait: self.wait(),
            tries: tries.min(MOST_TRIES),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.began).as_nanos();
        nanos.try_into().unwrap_or(u64::MAX)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.began + Duration::from_nanos(nanos)
    }

    fn wait(&self) -> Duration {
        self.round_trip.map_or(FIRST_WAIT, |it| {
            let usual = it.mean + (it.mean / 4).max(it.deviation * 4);
            usual.clamp(SHORTEST_WAIT, LONGEST_WAIT)
        })
    }
}

impl RoundTrip {
    fn after(before: Option<Self>, round_trip: Duration) -> Self {
        before.map_or(
            Self {
                mean: round_trip,
                deviation: round_trip / 8,
            },
            |it| Self {
                mean: (it.mean * 7 + round_trip) / 8,
                deviation: (it.deviation * 3 + it.mean.abs_diff(round_trip)) / 4,
            },
        )
    }
}

fn ones(count: usize) -> u128 {
    (1 << count) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ROUND_TRIP: Duration = Duration::from_millis(20);

    /// A probe each second. Returns when the last one is over.
    fn history(answered: &[bool]) -> (History, Instant) {
        let start = Instant::now();
        let mut it = History::new(start);
        let mut now = start;
        for is_answered in answered {
            it.sent(now);
            if *is_answered {
                it.answered(now, now + ROUND_TRIP, true);
            }
            now += SECOND;
        }
        (it, now)
    }

    #[test]
    fn an_answer_is_missing_after_a_while_and_counts_when_it_is_late() {
        let (mut it, now) = history(&[true; 5]);
        it.sent(now);
        assert_eq!(it.misses(now + ROUND_TRIP), 0);
        assert_eq!(it.next_miss(now), Some(now + SHORTEST_WAIT));
        assert_eq!(it.misses(now + SHORTEST_WAIT), 1);
        it.answered(now, now + SECOND, true);
        assert_eq!(it.misses(now + SECOND), 0);
        assert_eq!(it.next_miss(now + SECOND), None);
    }

    #[test]
    fn one_missing_answer_is_forgiven_and_two_are_not() {
        let proven = |answered: &[bool]| {
            let (it, now) = history(answered);
            it.proven(now)
        };
        assert_eq!(proven(&[]), 0);
        assert_eq!(proven(&[true; 20]), 20);
        assert_eq!(proven(&[true; 200]), 128);
        assert_eq!(proven(&[true, true, false, true, true, true]), 6);
        assert_eq!(proven(&[true, false, true, false, true, true]), 4);
        assert_eq!(proven(&[true, false, false]), 1);
    }

    #[test]
    fn the_more_a_path_loses_the_more_missing_answers_it_takes() {
        let dead_after = |one_of: usize| {
            let answered: Vec<_> = (0..2000).map(|it| it % one_of == 0).collect();
            history(&answered).0.dead_after()
        };
        let least = (FALSE_ALARM.ln() / LEAST_LOSS.ln()).ceil();
        assert_eq!(least as usize, DEAD_AFTER);
        assert_eq!(dead_after(1), 27);
        assert_eq!(dead_after(2), 27);
        assert_eq!(dead_after(3), 46);
        assert_eq!(dead_after(9), 65);
    }

    #[test]
    fn the_more_a_path_loses_the_more_tries_it_takes() {
        let tries = |one_of: usize| {
            let answered: Vec<_> = (0..2000).map(|it| it % one_of == 0).collect();
            history(&answered).0.patience().tries
        };
        assert_eq!([1, 2, 3].map(tries), [2, 6, 6]);
    }

    #[test]
    fn a_path_that_was_dead_has_not_lost_more_than_usual() {
        let answered = [[true; 50].as_slice(), &[false; 100], &[true]].concat();
        let (it, now) = history(&answered);
        assert_eq!(it.loss(now).lost, 0);
        assert_eq!(it.dead_after(), 27);
    }

    #[test]
    fn an_answer_without_acceptance_is_missing() {
        let (mut it, now) = history(&[true; 20]);
        assert!(!it.is_refused());
        it.sent(now);
        it.answered(now, now + ROUND_TRIP, false);
        assert!(it.is_refused());
        assert_eq!(it.misses(now + SECOND), 1);
        it.sent(now + SECOND);
        it.answered(now + SECOND, now + SECOND + ROUND_TRIP, true);
        assert!(!it.is_refused());
    }

    #[test]
    fn answers_are_counted_from_a_time_on() {
        let (it, now) = history(&[true, false, true, true]);
        assert_eq!(it.answers_since(None), 3);
        assert_eq!(it.answers_since(Some(now - SECOND * 3)), 2);
        assert_eq!(it.answers_since(Some(now)), 0);
    }

    #[test]
    fn a_history_is_small() {
        assert!(size_of::<History>() <= 288, "{}", size_of::<History>());
    }
}
