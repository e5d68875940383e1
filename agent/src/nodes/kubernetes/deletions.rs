//! Deleted IpipNodes, until their nodes leave the inventory. Pure; time is an input.
//!
//! A deleted object stays for a quiet period, because its agent may write it again. If most peers disappear together
//! (`kubectl delete crd`, a restore of etcd, an empty list), they are held for longer: it is more likely a mistake than true.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::time::Instant;

/// Deletions count together until there is none for this time.
const QUIET: Duration = Duration::from_secs(5);
/// A deletion waits for no more than this time for others to end.
const LONGEST: Duration = Duration::from_secs(60);
/// Time for which most peers are held when they disappear together.
const HOLD: Duration = Duration::from_secs(5 * 60);
/// Time between attempts to end a hold while the API server does not answer.
const POSTPONE: Duration = Duration::from_secs(30);
/// With fewer peers, more than half of them can disappear in the usual course of things.
const FEWEST: usize = 4;

/// The deleted objects that are still in use.
#[derive(Debug, Default)]
pub struct Deletions {
    /// The time of each deletion that may be taken back.
    recent: BTreeMap<String, Instant>,
    /// The time of the last one.
    last: Option<Instant>,
    /// The time at which each hold ends.
    held: BTreeMap<String, Instant>,
}

impl Deletions {
    /// The object was deleted at `now`, or is being deleted.
    pub fn add(&mut self, name: String, now: Instant) {
        if !self.held.contains_key(&name) && !self.recent.contains_key(&name) {
            self.recent.insert(name, now);
            self.last = Some(now);
        }
    }

    /// The object exists again. Returns whether it was held.
    pub fn take_back(&mut self, name: &str) -> bool {
        self.recent.remove(name);
        self.held.remove(name).is_some()
    }

    /// The Node of a held object does not exist. Returns whether the node must leave the inventory.
    pub fn node_is_gone(&mut self, name: &str) -> bool {
        self.held.remove(name).is_some()
    }

    /// The names that are held.
    pub fn held(&self) -> BTreeSet<String> {
        self.held.keys().cloned().collect()
    }

    /// The time at which [`Self::end`] is due.
    pub fn due(&self) -> Option<Instant> {
        let first = self.recent.values().min().map(|first| *first + LONGEST);
        let quiet = self.last.map(|last| last + QUIET);
        let recent = first.map(|first| quiet.map_or(first, |quiet| first.min(quiet)));
        let held = self.held.values().min().copied();
        recent.into_iter().chain(held).min()
    }

    /// Returns the names that must leave the inventory at `now`. `peers` are the peers in the inventory, with those that are
    /// deleted, and `own` is this node. While the API server does not answer, no deletion can be taken back, so no hold ends.
    pub fn end(&mut self, now: Instant, peers: usize, own: &str, answers: bool) -> Vec<String> {
        let mut ended = Vec::new();
        for (name, end) in std::mem::take(&mut self.held) {
            if end > now {
                self.held.insert(name, end);
            } else if answers {
                ended.push(name);
            } else {
                self.held.insert(name, now + POSTPONE);
            }
        }
        let is_due = self.recent.values().any(|first| *first + LONGEST <= now)
            || self.last.is_some_and(|last| last + QUIET <= now);
        if !is_due {
            return ended;
        }
        self.last = None;
        let recent = std::mem::take(&mut self.recent);
        let deleted = recent.keys().chain(self.held.keys());
        let deleted = deleted.filter(|name| *name != own).count();
        if peers >= FEWEST && 2 * deleted > peers {
            let until = |(name, deleted): (String, Instant)| (name, deleted + HOLD);
            self.held.extend(recent.into_iter().map(until));
        } else {
            ended.extend(recent.into_keys());
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn names(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|n| format!("n{n}"))
    }

    #[test]
    fn a_deletion_ends_after_a_quiet_period_and_never_if_it_is_taken_back() {
        let start = Instant::now();
        let mut deletions = Deletions::default();
        assert_eq!(deletions.due(), None);
        for name in names(2) {
            deletions.add(name, start);
        }
        assert_eq!(deletions.due(), Some(start + QUIET));
        deletions.take_back("n0");
        assert_eq!(deletions.end(start + QUIET / 2, 8, "own", true), [""; 0]);
        assert_eq!(deletions.end(start + QUIET, 8, "own", true), ["n1"]);
        assert_eq!(deletions.due(), None);
    }

    #[test]
    fn half_of_the_peers_leave_at_once_and_more_than_half_of_at_least_four_are_held() {
        for (deleted, peers, is_held) in [(2, 4, false), (3, 4, true), (3, 3, false), (9, 16, true)]
        {
            let start = Instant::now();
            let mut deletions = Deletions::default();
            names(deleted).for_each(|name| deletions.add(name, start));
            deletions.add("own".into(), start);
            let ended = deletions.end(start + QUIET, peers, "own", true);
            assert_eq!(ended.is_empty(), is_held, "{deleted} of {peers}");
            assert_eq!(
                deletions.held().len(),
                if is_held { deleted + 1 } else { 0 }
            );
        }
    }

    #[test]
    fn deletions_one_after_the_other_count_together_and_later_ones_with_those_that_are_held() {
        let start = Instant::now();
        let mut deletions = Deletions::default();
        let mut now = start;
        for name in names(12) {
            deletions.add(name, now);
            now += 4 * SECOND;
            assert_eq!(deletions.end(now, 20, "own", true), [""; 0]);
        }
        assert_eq!(deletions.end(now + SECOND, 20, "own", true), [""; 0]);
        assert_eq!(deletions.held().len(), 12);
        deletions.add("late".into(), now + 30 * SECOND);
        assert_eq!(deletions.end(now + 35 * SECOND, 20, "own", true), [""; 0]);
        assert!(deletions.held().contains("late"));
    }

    #[test]
    fn a_stream_of_deletions_delays_none_for_longer_than_a_minute() {
        let start = Instant::now();
        let mut deletions = Deletions::default();
        for second in 0..60 {
            let now = start + second * SECOND;
            deletions.add(format!("n{second}"), now);
            assert_eq!(deletions.end(now, 1000, "own", true), [""; 0]);
        }
        assert_eq!(deletions.end(start + LONGEST, 1000, "own", true).len(), 60);
    }

    #[test]
    fn a_hold_ends_after_its_time_or_with_its_node_and_not_without_an_api_server() {
        let start = Instant::now();
        let mut deletions = Deletions::default();
        names(4).for_each(|name| deletions.add(name, start));
        assert_eq!(deletions.end(start + QUIET, 5, "own", true), [""; 0]);
        assert!(deletions.node_is_gone("n0") && !deletions.node_is_gone("n0"));
        assert!(deletions.take_back("n1"));
        assert_eq!(deletions.due(), Some(start + HOLD));
        assert_eq!(deletions.end(start + HOLD, 5, "own", false), [""; 0]);
        let due = deletions.due().unwrap();
        assert_eq!(deletions.end(due, 5, "own", true), ["n2", "n3"]);
    }
}
