//! A firewall that admits packets of protocol 4 only for a time after the node behind it has sent some.

use crate::paths::{
    pair::{Packet, Pair, nothing},
    simulation::SECOND,
};
use ipip_abi::Candidate as Number;
use proptest::prelude::*;
use std::time::Duration;

/// The node behind the firewall. The other one is outside.
const INSIDE: usize = 1;
const FAILOVER: Duration = Duration::from_secs(3);

/// Only public paths exist. Those by UDP pass the firewall freely, or not at all: connection tracking takes the answer to a
/// probe for something new, because its ports are not those of the probe.
struct Firewall {
    admits_udp: bool,
    timeout: Duration,
    open_until: Duration,
    /// Packets of the outside that were lost one after another: when the first and the last one was sent.
    outage: Option<[Duration; 2]>,
    longest: Duration,
}

impl Firewall {
    fn new(timeout: Duration, admits_udp: bool) -> Self {
        Self {
            admits_udp,
            timeout,
            open_until: Duration::ZERO,
            outage: None,
            longest: Duration::ZERO,
        }
    }

    fn passes(&mut self, packet: Packet) -> bool {
        let passes = match packet.number {
            Number::PublicIpip if packet.from == INSIDE || packet.at < self.open_until => {
                self.open_until = packet.at + self.timeout;
                true
            }
            Number::PublicUdp => self.admits_udp,
            _ => false,
        };
        if packet.from != INSIDE && !packet.is_probe {
            self.outage = match (self.outage, passes) {
                (_, true) => None,
                (None, false) => Some([packet.at; 2]),
                (Some([first, _]), false) => Some([first, packet.at]),
            };
            let [first, last] = self.outage.unwrap_or_default();
            self.longest = self.longest.max(last - first);
        }
        passes
    }

    /// Lets time pass, and returns for how long the outside reached nobody.
    fn run(&mut self, pair: &mut Pair, time: Duration, has_traffic: [bool; 2]) -> Duration {
        (self.outage, self.longest) = (None, Duration::ZERO);
        pair.run_through(time, has_traffic, |it| self.passes(it));
        self.longest
    }
}

/// Expects that no session has a longer outage than `allowed`, with a firewall that forgets after so many seconds and admits UDP.
/// Each session has a number whose two lowest bits say which ends send, and seconds.
fn outages_are_within(
    allowed: Duration,
    timeout: u64,
    sessions: Vec<(usize, u64)>,
) -> Result<Pair, TestCaseError> {
    let mut it = Pair::new(nothing(), None);
    let mut firewall = Firewall::new(SECOND * timeout as u32, true);
    firewall.run(&mut it, SECOND * 5, [false; 2]);
    for (ends, seconds) in sessions {
        let ends = [ends & 1 != 0, ends & 2 != 0];
        let outage = firewall.run(&mut it, SECOND * seconds as u32, ends);
        prop_assert!(
            outage <= allowed,
            "{outage:?} {:?} {:?}",
            it.now(),
            it.changes
        );
    }
    Ok(it)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_firewall_that_forgets_after_half_a_minute_closes_no_path_in_use(
        timeout in 26_u64..=600,
        sessions in prop::collection::vec((0_usize..4, 1_u64..300), 12),
    ) {
        let it = outages_are_within(Duration::ZERO, timeout, sessions)?;
        prop_assert_eq!(it.path(), Some(Number::PublicIpip), "{:?}", it.changes);
    }

    #[test]
    fn a_path_that_a_firewall_closes_sooner_is_left_within_three_seconds_of_traffic(
        timeout in 1_u64..=25,
        sessions in prop::collection::vec((0_usize..4, 1_u64..120), 12),
    ) {
        outages_are_within(FAILOVER, timeout, sessions)?;
    }

    #[test]
    fn where_only_such_a_path_exists_it_stays_in_use_and_works_while_the_inside_sends(
        timeout in 2_u64..=600,
        pause in 0_u64..1000,
    ) {
        let mut it = Pair::new(nothing(), None);
        let mut firewall = Firewall::new(SECOND * timeout as u32, false);
        firewall.run(&mut it, SECOND * 5, [false; 2]);
        for _ in 0..3 {
            firewall.run(&mut it, SECOND * pause as u32, [false; 2]);
            firewall.run(&mut it, SECOND, [false, true]);
            let outage = firewall.run(&mut it, SECOND * 60, [true; 2]);
            prop_assert_eq!(outage, Duration::ZERO);
            prop_assert_eq!(it.path(), Some(Number::PublicIpip), "{:?}", it.changes);
        }
    }
}
