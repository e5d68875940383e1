//! The MTU of the path to a peer: the largest packet that an answer has proven to pass.
//!
//! Routers may say that a packet was too large, or only drop it; anybody can say so. So probes of several sizes decide alone.

use ipip_abi::{Encapsulation, LARGE, wire::OUTER_IP_UDP_LEN};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// MTUs of networks, as their outer packets have them: jumbo frames, clouds between regions, Ethernet, PPPoE, tunnels, and the least
/// one of IPv6.
const KNOWN: [u16; 14] = [
    1280, 1320, 1360, 1380, 1400, 1420, 1440, 1460, 1480, 1492, 1500, 4000, 8500, 8900,
];
const _: () = assert!(KNOWN[0] as usize == LARGE + OUTER_IP_UDP_LEN);
/// The largest packet that is expected to pass the Internet.
const INTERNET: u16 = 1500;
/// Between two searches for a larger MTU. The first one after a result that was smaller than before comes sooner.
const GROWTH: Duration = Duration::from_secs(300);
const FIRST_GROWTH: Duration = Duration::from_secs(60);
/// Shortest time between two searches that a hint begins: an ICMP error, or a probe of full size without an answer.
const HOLD: Duration = Duration::from_secs(2);
/// Between two searches that find nothing.
const AGAIN: Duration = Duration::from_secs(10);
/// Probes whose answers are recognised.
const RECENT: usize = 64;

/// What the usual losses and round trips of a path demand.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// After this time an answer is missing.
    pub wait: Duration,
    /// So many missing answers in a row are no chance.
    pub tries: u32,
}

/// The MTU of a path, in bytes of the inner packet, and the search for it.
#[derive(Clone, Debug)]
pub struct PathMtu {
    /// The sizes to try, ascending. The last one is what the uplink admits.
    sizes: Vec<u16>,
    /// The largest packet to send.
    current: u16,
    search: Option<Search>,
    /// Whether a search has found it.
    is_found: bool,
    sent: VecDeque<(Instant, u16)>,
    /// When the last search began.
    searched_at: Option<Instant>,
    /// When larger packets are tried again, and after how much time the next time.
    grows_at: Option<Instant>,
    growth: Duration,
}

#[derive(Clone, Debug)]
struct Search {
    goal: Goal,
    /// The sizes that are not answered yet and are larger than the answered ones, ascending.
    sizes: Vec<u16>,
    /// The largest one that was answered.
    answered: Option<u16>,
    round: u32,
    next: Instant,
}

/// What a search is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Goal {
    /// Whether the current size still passes.
    Verify,
    /// Which is the largest size.
    Find,
    /// Whether a larger one passes.
    Grow,
}

impl PathMtu {
    /// The MTU of a path whose uplink admits `limit` bytes of inner packets. What it really is has to be searched; until then a
    /// public path is expected to be like the Internet. `known` is what an earlier process of this boot has found.
    pub fn new(
        limit: u16,
        encapsulation: Encapsulation,
        is_public: bool,
        known: Option<u16>,
    ) -> Self {
        let overhead = encapsulation.overhead();
        let inner = KNOWN.iter().map(|it| it - overhead);
        let sizes: Vec<u16> = inner.filter(|it| *it < limit).chain([limit]).collect();
        let expected = match is_public {
            true => limit.min(INTERNET - overhead),
            false => limit,
        };
        Self {
            sizes,
            current: known.map_or(expected, |it| it.min(limit)),
            search: None,
            is_found: false,
            sent: VecDeque::new(),
            searched_at: None,
            grows_at: None,
            growth: FIRST_GROWTH,
        }
    }

    /// The largest inner packet to send, in bytes.
    pub fn current(&self) -> u16 {
        self.current
    }

    /// The largest inner packet that the uplink admits.
    pub fn limit(&self) -> u16 {
        *self.sizes.last().unwrap_or(&self.current)
    }

    /// Searches the MTU, if that has not been done yet. For a path that carries traffic.
    pub fn need(&mut self, now: Instant) {
        if !self.is_found && self.search.is_none() && !self.has_searched_since(now, AGAIN) {
            self.start(Goal::Find, now);
        }
    }

    /// Searches again, because something suggests that large packets do not pass: a router says so, or a probe of this size is
    /// missing.
    pub fn doubt(&mut self, now: Instant) {
        if self.search.is_none() && !self.has_searched_since(now, HOLD) {
            self.start(Goal::Verify, now);
        }
    }

    fn has_searched_since(&self, now: Instant, time: Duration) -> bool {
        self.searched_at
            .is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    /// When [`Self::due`] has something to do; none while the path is idle and nothing is searched.
    pub fn wake(&self, is_active: bool) -> Option<Instant> {
        match &self.search {
            Some(search) => Some(search.next),
            None => self.grows_at.filter(|_| is_active),
        }
    }

    /// The sizes of the probes to send now.
    pub fn due(&mut self, now: Instant, patience: Patience, is_active: bool) -> Vec<u16> {
        if self.search.is_none() && is_active && self.grows_at.is_some_and(|at| at <= now) {
            self.start(Goal::Grow, now);
        }
        let Some(search) = &mut self.search else {
            return Vec::new();
        };
        if now < search.next {
            return Vec::new();
        }
        if !search.sizes.is_empty() && search.round < patience.tries {
            search.round += 1;
            search.next = now + patience.wait;
            return search.sizes.clone();
        }
        let (goal, answered) = (search.goal, search.answered);
        self.search = None;
        match (goal, answered) {
            (Goal::Verify, None) => {
                self.start(Goal::Find, now);
                return self.due(now, patience, is_active);
            }
            (Goal::Verify, Some(_)) => {}
            (Goal::Find, Some(found)) => {
                self.is_found = true;
                self.set(found, now);
            }
            // Not even the shortest passes: the path is dead, which says nothing of its MTU.
            (Goal::Find, None) => {}
            (Goal::Grow, Some(found)) => self.set(found, now),
            (Goal::Grow, None) => {
                self.growth = (self.growth * 2).min(GROWTH);
                self.grows_at = Some(now + self.growth);
            }
        }
        Vec::new()
    }

    /// Records a probe that [`Self::due`] has named.
    pub fn sent(&mut self, at: Instant, size: u16) {
        self.sent.truncate(RECENT - 1);
        self.sent.push_front((at, size));
    }

    /// Records the answer to the probe that was sent at this time, in which the peer states the size that arrived. False if it is
    /// none of these probes.
    pub fn answered(&mut self, sent: Instant, arrived: u16) -> bool {
        let Some(index) = self.sent.iter().position(|it| it.0 == sent) else {
            return false;
        };
        let Some((_, size)) = self.sent.remove(index) else {
            return false;
        };
        if let Some(search) = &mut self.search
            && arrived >= size
        {
            search.answered = search.answered.max(Some(size));
            search.sizes.retain(|it| Some(*it) > search.answered);
            if search.sizes.is_empty() {
                search.next = sent;
            }
        }
        true
    }

    fn start(&mut self, goal: Goal, now: Instant) {
        self.searched_at = Some(now);
        let current = self.current;
        let sizes = match goal {
            Goal::Verify => vec![current],
            Goal::Find => self.sizes.clone(),
            Goal::Grow => {
                let larger = self.sizes.iter().filter(|it| **it > current);
                larger.copied().collect()
            }
        };
        self.search = Some(Search {
            goal,
            sizes,
            answered: None,
            round: 0,
            next: now,
        });
    }

    fn set(&mut self, found: u16, now: Instant) {
        if found < self.current {
            self.growth = FIRST_GROWTH;
        }
        self.current = found;
        self.grows_at = (found < self.limit()).then(|| now + self.growth);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience {
        wait: Duration::from_millis(200),
        tries: 2,
    };
    const ROUND_TRIP: Duration = Duration::from_millis(30);

    struct Network {
        now: Instant,
        mtu: PathMtu,
        probes: usize,
    }

    impl Network {
        fn new(mtu: PathMtu) -> Self {
            Self {
                now: Instant::now(),
                mtu,
                probes: 0,
            }
        }

        /// Lets time pass on a path that carries traffic.
        fn run(&mut self, time: Duration, passes: impl Fn(u16) -> bool) {
            let end = self.now + time;
            let mut answers: VecDeque<(Instant, Instant, u16)> = VecDeque::new();
            while self.now < end {
                while let Some((at, sent, size)) = answers.front().copied()
                    && at <= self.now
                {
                    answers.pop_front();
                    self.mtu.answered(sent, size);
                }
                for size in self.mtu.due(self.now, PATIENCE, true) {
                    self.probes += 1;
                    // Two probes of one candidate never have the same time.
                    self.now += Duration::from_nanos(1000);
                    self.mtu.sent(self.now, size);
                    if passes(size) {
                        answers.push_back((self.now + ROUND_TRIP, self.now, size));
                    }
                }
                self.now += Duration::from_millis(10);
            }
        }
    }

    fn ipip(limit: u16, is_public: bool) -> PathMtu {
        PathMtu::new(limit, Encapsulation::Ipip, is_public, None)
    }

    #[test]
    fn a_public_path_is_expected_to_be_the_internet_and_a_private_one_to_be_the_uplink() {
        assert_eq!(ipip(8981, true).current(), 1480);
        assert_eq!(ipip(8981, false).current(), 8981);
        assert_eq!(ipip(1480, true).current(), 1480);
        assert_eq!(ipip(1380, true).current(), 1380);
        let udp = PathMtu::new(8973, Encapsulation::Udp, true, None);
        assert_eq!(udp.current(), 1472);
        let known = PathMtu::new(1480, Encapsulation::Ipip, true, Some(1260));
        assert_eq!(known.current(), 1260);
        let smaller = PathMtu::new(1400, Encapsulation::Ipip, true, Some(1480));
        assert_eq!(smaller.current(), 1400);
    }

    #[test]
    fn nothing_is_searched_before_there_is_traffic_and_what_passes_is_known_after_one_round_trip() {
        let mut it = Network::new(ipip(1480, true));
        it.run(SECOND, |_| true);
        assert_eq!(it.probes, 0);
        it.mtu.need(it.now);
        it.run(SECOND, |_| true);
        assert_eq!((it.mtu.current(), it.probes), (1480, KNOWN.len() - 3));
        it.mtu.need(it.now);
        it.run(SECOND * 2000, |_| true);
        assert_eq!(it.probes, KNOWN.len() - 3);
    }

    #[test]
    fn a_path_that_becomes_narrow_is_known_within_a_second_and_a_wide_one_within_ten_minutes() {
        for (limit, narrow) in [(1480, 1380), (1480, 1260), (8981, 1480), (1480, 1472)] {
            let mut it = Network::new(ipip(limit, false));
            it.mtu.need(it.now);
            it.run(SECOND * 5, |_| true);
            assert_eq!(it.mtu.current(), limit);
            it.mtu.doubt(it.now);
            it.run(SECOND, |size| size <= narrow);
            assert_eq!(it.mtu.current(), narrow);
            it.run(SECOND * 1000, |size| size <= narrow);
            assert_eq!(it.mtu.current(), narrow);
            it.run(SECOND * 600, |_| true);
            assert_eq!(it.mtu.current(), limit);
        }
    }

    #[test]
    fn what_others_say_changes_nothing_and_costs_little() {
        let mut it = Network::new(ipip(1480, true));
        it.mtu.need(it.now);
        it.run(SECOND * 5, |_| true);
        let before = it.probes;
        for _ in 0..600 {
            it.mtu.doubt(it.now);
            it.run(SECOND / 10, |_| true);
        }
        assert_eq!(it.mtu.current(), 1480);
        assert!(it.probes - before <= 31, "{}", it.probes - before);
    }

    #[test]
    fn an_answer_counts_only_with_the_whole_size() {
        let mut it = Network::new(ipip(1480, true));
        it.mtu.need(it.now);
        let sizes = it.mtu.due(it.now, PATIENCE, true);
        for (n, size) in sizes.iter().enumerate() {
            let at = it.now + Duration::from_nanos(n as u64);
            it.mtu.sent(at, *size);
            assert!(it.mtu.answered(at, 100));
            assert!(!it.mtu.answered(at, *size), "twice");
        }
        it.run(SECOND * 2, |_| false);
        assert_eq!(it.mtu.current(), 1480);
    }

    #[test]
    fn a_path_that_is_dead_keeps_its_mtu_and_is_searched_when_it_works() {
        let mut it = Network::new(ipip(1480, true));
        for _ in 0..20 {
            it.mtu.need(it.now);
            it.run(SECOND, |_| false);
        }
        assert_eq!(it.mtu.current(), 1480);
        for _ in 0..11 {
            it.mtu.need(it.now);
            it.run(SECOND, |size| size <= 1380);
        }
        assert_eq!(it.mtu.current(), 1380);
    }

    proptest! {
        #[test]
        fn the_result_is_a_size_that_passes_and_the_next_larger_one_does_not(
            limit in 1280_u16..=9001,
            real in 1260_u16..=9001,
            is_public in any::<bool>(),
            overhead in prop_oneof![Just(Encapsulation::Ipip), Just(Encapsulation::Udp), Just(Encapsulation::Direct)],
        ) {
            let mut it = Network::new(PathMtu::new(limit, overhead, is_public, None));
            it.mtu.need(it.now);
            it.run(SECOND * 3, |size| size <= real);
            let found = it.mtu.current();
            let next = it.mtu.sizes.iter().find(|it| **it > found);
            if it.mtu.sizes[0] <= real {
                prop_assert!(found <= real);
                prop_assert!(next.is_none_or(|it| *it > real));
            }
        }
    }
}
