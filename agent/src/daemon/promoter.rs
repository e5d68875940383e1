//! Which interface is next to be promoted from clsact to TCX.
//!
//! Attaching by TCX keeps everybody else from changing interfaces for a while, so it is done one
//! interface at a time, and when no pod has come for a moment: pods that start are not to wait.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// No new interface for so long is calm.
const CALM: Duration = Duration::from_secs(2);
/// Where it never gets calm, nobody waits longer than this for the turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// An interface that could not be promoted is tried again after this.
const RETRY: Duration = Duration::from_secs(60);

/// The interfaces that wait for their turn.
#[derive(Debug, Default)]
pub struct Promoter {
    waiting: BTreeMap<String, Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    not_before: Instant,
}

impl Promoter {
    /// Whose turn it is, if anybody's, of those that could be promoted now.
    pub fn next(&mut self, promotable: &[String], now: Instant) -> Option<&str> {
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
        let is_calm = now.duration_since(newest) >= CALM;
        let ripe = self.waiting.iter().filter(|(_, it)| it.not_before <= now);
        let (ifname, oldest) = ripe.min_by_key(|(_, it)| it.since)?;
        (is_calm || now.duration_since(oldest.since) >= PATIENCE).then_some(ifname)
    }

    /// Notes that it could not be promoted.
    pub fn failed(&mut self, ifname: &str, now: Instant) {
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

    fn at(began: Instant, seconds: u64) -> Instant {
        began + Duration::from_secs(seconds)
    }

    #[test]
    fn the_oldest_is_promoted_when_no_pod_has_come_for_a_moment() {
        let (mut promoter, began) = (Promoter::default(), Instant::now());
        assert_eq!(promoter.next(&[], began), None);
        assert_eq!(promoter.next(&names(&["b"]), began), None);
        let both = names(&["a", "b"]);
        assert_eq!(promoter.next(&both, at(began, 1)), None);
        assert_eq!(promoter.next(&both, at(began, 2)), None, "a has just come");
        assert_eq!(promoter.next(&both, at(began, 3)), Some("b"));
        assert_eq!(promoter.next(&names(&["a"]), at(began, 4)), Some("a"));
    }

    #[test]
    fn where_it_never_gets_calm_nobody_waits_for_ever() {
        let (mut promoter, began) = (Promoter::default(), Instant::now());
        for second in 0..40 {
            let come = names(&["old", &format!("pod{second}")]);
            let expected = (second >= 30).then_some("old");
            assert_eq!(promoter.next(&come, at(began, second)), expected);
        }
    }

    #[test]
    fn one_that_fails_lets_the_others_go_first() {
        let (mut promoter, began) = (Promoter::default(), Instant::now());
        let both = names(&["a", "b"]);
        assert_eq!(promoter.next(&both, began), None);
        assert_eq!(promoter.next(&both, at(began, 2)), Some("a"));
        promoter.failed("a", at(began, 2));
        assert_eq!(promoter.next(&both, at(began, 3)), Some("b"));
        assert_eq!(promoter.next(&names(&["a"]), at(began, 4)), None);
        assert_eq!(promoter.next(&names(&["a"]), at(began, 62)), Some("a"));
    }

    #[test]
    fn a_pod_of_the_same_name_begins_anew() {
        let (mut promoter, began) = (Promoter::default(), Instant::now());
        promoter.next(&names(&["a"]), began);
        promoter.next(&[], at(began, 1));
        assert_eq!(promoter.next(&names(&["a"]), at(began, 2)), None);
    }
}
