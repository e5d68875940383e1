//! How often peers without traffic are probed.

use std::time::Duration;

/// Shortest time between two probes of a candidate.
const CANDIDATE: Duration = Duration::from_secs(60);
/// Between two probes of a path in use. A stateful firewall on the way may admit packets only after one of the other direction;
/// usual ones forget a flow after half a minute or more.
const IN_USE: Duration = Duration::from_secs(25);
/// Probes of all peers without traffic, a second: with answers, 32 kbit/s.
const PROBES: u32 = 25;

/// Times between two probes without traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Idle {
    /// Of a candidate.
    pub candidate: Duration,
    /// Of a path in use: as rarely if there are many peers.
    pub in_use: Duration,
}

impl Idle {
    /// For so many peers, which have so many candidates together.
    pub fn new(peers: usize, candidates: usize) -> Self {
        let candidate = CANDIDATE.max(Duration::from_secs(1) * candidates as u32 / PROBES);
        let probes =
            peers as f64 / IN_USE.as_secs_f64() + candidates as f64 / candidate.as_secs_f64();
        let in_use = if probes <= f64::from(PROBES) {
            IN_USE
        } else {
            candidate
        };
        Self { candidate, in_use }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_peers_together_are_probed_twenty_five_times_a_second_at_most() {
        for peers in 0..10_000 {
            for candidates in [2, 4, 5] {
                let it = Idle::new(peers, peers * candidates);
                let others = peers * (candidates - 1);
                let probes = peers as f64 / it.in_use.as_secs_f64()
                    + others as f64 / it.candidate.as_secs_f64();
                assert!(probes < 25.01, "{peers}: {probes}");
                assert!(it.candidate >= CANDIDATE);
                assert_eq!(
                    it.in_use == IN_USE,
                    probes <= 25.0 && it.in_use < it.candidate
                );
            }
        }
        assert_eq!(Idle::new(200, 800).in_use, IN_USE);
        assert_eq!(Idle::new(5000, 20_000).in_use, Duration::from_secs(800));
    }
}
