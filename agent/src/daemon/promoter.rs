//! Promotes interfaces from clsact to TCX.
//!
//! The CNI plugin attaches by clsact, because attaching by TCX waits for RCU grace periods while it holds the
//! kernel's lock on interfaces (RTNL), and starting pods would wait too. After a quiet period the promoter moves one
//! interface at a time to TCX.

use ipip_datapath::{Error, Programs, Promotion};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tracing::{debug, info};

/// Promotion starts after no interface has appeared for this long.
const QUIET_PERIOD: Duration = Duration::from_secs(2);
/// Upper bound on the wait for a quiet period.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// An interface that could not be promoted is tried again after this time.
const RETRY: Duration = Duration::from_secs(60);

/// Promotes one interface at a time.
pub struct Promoter {
    programs: Programs,
    queue: Queue,
}

impl Promoter {
    /// A promoter that has seen no interface yet.
    pub fn new(programs: Programs) -> Self {
        Self {
            programs,
            queue: Queue::default(),
        }
    }

    /// Promotes the next interface, if one is due at `now`.
    ///
    /// # Errors
    /// The kernel's reason. The interface keeps its clsact filters and is tried again later.
    pub fn promote(&mut self, now: Instant) -> Result<(), Error> {
        let promotable = self.programs.promotable()?;
        let Some(ifname) = self.queue.next(&promotable, now).map(str::to_owned) else {
            return Ok(());
        };
        match self.programs.promote(&ifname) {
            Ok(Promotion::Done) => info!(interface = ifname, "promoted from clsact to TCX"),
            Ok(outcome) => debug!(interface = ifname, ?outcome, "not promoted"),
            Err(error) => {
                self.queue.failed(&ifname, now);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The interfaces that wait for promotion.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<String, Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    not_before: Instant,
}

impl Queue {
    /// Returns the interface to promote at `now`, if one is due. `promotable` lists all that can be promoted.
    fn next(&mut self, promotable: &[String], now: Instant) -> Option<&str> {
        self.waiting
            .retain(|ifname, _| promotable.iter().any(|it| it == ifname));
        for ifname in promotable {
            let fresh = Waiting {
                since: now,
                not_before: now,
            };
            self.waiting.entry(ifname.clone()).or_insert(fresh);
        }
        let newest = self.waiting.values().map(|it| it.since).max()?;
        let is_quiet = now.duration_since(newest) >= QUIET_PERIOD;
        let due = self.waiting.iter().filter(|(_, it)| it.not_before <= now);
        let (ifname, oldest) = due.min_by_key(|(_, it)| it.since)?;
        (is_quiet || now.duration_since(oldest.since) >= MAX_WAIT).then_some(ifname)
    }

    /// Delays the next attempt for an interface that could not be promoted.
    fn failed(&mut self, ifname: &str, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(ifname) {
            waiting.not_before = now + RETRY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_interface_is_promoted_after_a_quiet_period() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        assert_eq!(queue.next(&[], start), None);
        assert_eq!(queue.next(&names(&["b"]), start), None);
        let both = names(&["a", "b"]);
        assert_eq!(queue.next(&both, at(start, 1)), None);
        assert_eq!(queue.next(&both, at(start, 2)), None, "a has just appeared");
        assert_eq!(queue.next(&both, at(start, 3)), Some("b"));
        assert_eq!(queue.next(&names(&["a"]), at(start, 4)), Some("a"));
    }

    #[test]
    fn without_a_quiet_period_an_interface_is_promoted_after_the_longest_wait() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        for second in 0..40 {
            let promotable = names(&["old", &format!("pod{second}")]);
            let expected = (second >= 30).then_some("old");
            assert_eq!(queue.next(&promotable, at(start, second)), expected);
        }
    }

    #[test]
    fn an_interface_that_failed_lets_the_others_go_first() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let both = names(&["a", "b"]);
        assert_eq!(queue.next(&both, start), None);
        assert_eq!(queue.next(&both, at(start, 2)), Some("a"));
        queue.failed("a", at(start, 2));
        assert_eq!(queue.next(&both, at(start, 3)), Some("b"));
        assert_eq!(queue.next(&names(&["a"]), at(start, 4)), None);
        assert_eq!(queue.next(&names(&["a"]), at(start, 62)), Some("a"));
    }

    #[test]
    fn a_new_interface_of_the_same_name_waits_from_the_start() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.next(&names(&["a"]), start);
        queue.next(&[], at(start, 1));
        assert_eq!(queue.next(&names(&["a"]), at(start, 2)), None);
    }
}
