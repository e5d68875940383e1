//! What the last minutes have shown of a candidate, in a fixed amount of memory.

use crate::paths::loss::Loss;
use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// Minutes that are remembered: round trips that vary with a period of ten minutes are seen whole.
const LEN: usize = 10;
/// Minutes of which losses are compared. More would find smaller differences, but later.
const FOR_LOSS: usize = 5;
/// Minutes with an answer that a comparison of round trips needs.
const FOR_ROUND_TRIP: usize = 8;
const MINUTE: Duration = Duration::from_secs(60);
/// Round trips that differ by less are equal: usual jitter.
const JITTER: Duration = Duration::from_millis(3);

/// The last minutes.
#[derive(Clone, Debug)]
pub struct Minutes {
    /// When the newest one began.
    began: Instant,
    /// The newest first.
    minutes: [Minute; LEN],
}

/// Numbers are as small as possible, because an agent keeps ten minutes for each candidate of each peer.
#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    probes: u16,
    lost: u16,
    /// In microseconds. Queues only make a round trip longer, so the shortest one shows the path.
    shortest: Option<NonZeroU32>,
}

impl Minutes {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            minutes: [Minute::default(); LEN],
        }
    }

    /// Records an answer and its round trip. `probes` counts its probe and the unanswered ones before it.
    pub fn record(&mut self, now: Instant, round_trip: Duration, probes: u16) {
        let passed = self.passed(now);
        self.minutes.rotate_right(passed.min(LEN));
        self.minutes[..passed.min(LEN)].fill(Minute::default());
        self.began += MINUTE * u32::try_from(passed).unwrap_or(u32::MAX);

        let minute = &mut self.minutes[0];
        minute.probes = minute.probes.saturating_add(probes);
        minute.lost = minute.lost.saturating_add(probes.saturating_sub(1));
        let micros = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
        let micros = NonZeroU32::new(micros.max(1));
        minute.shortest = minute.shortest.min(micros).or(micros);
    }

    /// What was lost lately.
    pub fn loss(&self, now: Instant) -> Loss {
        self.last(FOR_LOSS, now)
            .iter()
            .fold(Loss::default(), |sum, it| Loss {
                probes: sum.probes + u32::from(it.probes),
                lost: sum.lost + u32::from(it.lost),
            })
    }

    /// The shortest round trip.
    pub fn shortest(&self, now: Instant) -> Option<Duration> {
        self.round_trips(now).min()
    }

    /// Whether each minute had a round trip that is shorter by a third than the other's shortest one. So jitter, or a round
    /// trip that is longer only for a while, does not make another path nearer.
    pub fn are_nearer_than(&self, other: &Self, now: Instant) -> bool {
        let enough = |it: &Self| it.round_trips(now).count() >= FOR_ROUND_TRIP;
        let (Some(longest), Some(limit)) = (self.round_trips(now).max(), other.shortest(now))
        else {
            return false;
        };
        enough(self) && enough(other) && (longest + JITTER) * 3 < limit * 2
    }

    fn round_trips(&self, now: Instant) -> impl Iterator<Item = Duration> {
        let minutes = self.last(LEN, now).iter();
        let micros = minutes.filter_map(|it| it.shortest);
        micros.map(|it| Duration::from_micros(it.get().into()))
    }

    /// The last `count` minutes. Those in which nothing was recorded yet are not in memory.
    fn last(&self, count: usize, now: Instant) -> &[Minute] {
        &self.minutes[..count.saturating_sub(self.passed(now))]
    }

    fn passed(&self, now: Instant) -> usize {
        let minutes = now.saturating_duration_since(self.began).as_secs() / MINUTE.as_secs();
        minutes.try_into().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One answer in each of ten minutes.
    fn minutes(start: Instant, millis: impl Fn(u32) -> u64) -> Minutes {
        let mut it = Minutes::new(start);
        for minute in 0..10 {
            let round_trip = Duration::from_millis(millis(minute));
            it.record(start + MINUTE * minute, round_trip, 2);
        }
        it
    }

    #[test]
    fn a_path_is_nearer_only_if_each_minute_shows_it() {
        let start = Instant::now();
        let now = start + MINUTE * 9;
        let far = minutes(start, |_| 30);
        assert!(minutes(start, |_| 10).are_nearer_than(&far, now));
        assert!(!minutes(start, |_| 19).are_nearer_than(&far, now));
        assert!(!minutes(start, |it| 10 + 20 * u64::from(it == 3)).are_nearer_than(&far, now));
        assert!(
            !minutes(start, |_| 10)
                .are_nearer_than(&minutes(start, |it| 30 - 20 * u64::from(it == 3)), now)
        );
        assert!(!Minutes::new(start).are_nearer_than(&far, now));
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let start = Instant::now();
        let it = minutes(start, |_| 10);
        let end = start + MINUTE * 9;
        assert_eq!(
            it.loss(end),
            Loss {
                probes: 10,
                lost: 5
            }
        );
        assert_eq!(it.loss(end + MINUTE * 2), Loss { probes: 6, lost: 3 });
        assert_eq!(it.loss(end + MINUTE * 5), Loss::default());
        assert_eq!(it.shortest(end + MINUTE * 10), None);
    }
}
