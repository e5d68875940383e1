//! How many probes may be sent to all peers together.

use std::time::{Duration, Instant};

/// Probes that may be sent at once, as a part of a second.
const BURST: Duration = Duration::from_millis(50);

/// Counts probes against a rate.
#[derive(Debug)]
pub struct Limit {
    /// Of one probe.
    interval: Duration,
    /// Until when the probes that were sent are paid for.
    paid_until: Instant,
}

impl Limit {
    /// So many probes a second; nothing was sent yet.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / rate,
            paid_until: now,
        }
    }

    /// Whether more may be sent now.
    pub fn allows(&mut self, now: Instant) -> bool {
        self.paid_until = self.paid_until.max(now);
        self.paid_until - now < BURST
    }

    /// Counts a probe.
    pub fn count(&mut self) {
        self.paid_until += self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate_is_allowed() {
        let start = Instant::now();
        let mut limit = Limit::new(10_000, start);
        let mut send_all = |now| {
            let mut sent = 0;
            while limit.allows(now) {
                limit.count();
                sent += 1;
            }
            sent
        };
        assert_eq!(send_all(start), 500);
        assert_eq!(send_all(start), 0);
        assert_eq!(send_all(start + Duration::from_millis(10)), 100);
        assert_eq!(send_all(start + Duration::from_secs(9)), 500);
    }
}
