//! What is sent to a peer.

use std::time::{Duration, Instant};

/// A peer counts as active for so long after the last packet that was sent to it.
const ACTIVE: Duration = Duration::from_secs(10);
/// Packets count as large if they have so many bytes on average. Large ones are then among them.
const LARGE: u64 = 300;

/// The traffic to a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    /// Packets and bytes until now.
    total: (u64, u64),
    active_until: Option<Instant>,
    large_until: Option<Instant>,
}

impl Activity {
    /// Records how many packets and bytes were sent until now. Returns whether the peer begins to be active.
    pub fn record(&mut self, packets: u64, bytes: u64, now: Instant) -> bool {
        let (packets_before, bytes_before) = std::mem::replace(&mut self.total, (packets, bytes));
        // The counters of a peer that had the same index are larger.
        let new = packets.saturating_sub(packets_before);
        if new == 0 {
            return false;
        }
        let was_active = self.is_active(now);
        self.active_until = Some(now + ACTIVE);
        if bytes.saturating_sub(bytes_before) / new >= LARGE {
            self.large_until = Some(now + ACTIVE);
        }
        !was_active
    }

    /// Whether packets were sent lately.
    pub fn is_active(&self, now: Instant) -> bool {
        self.active_until.is_some_and(|until| now < until)
    }

    /// Whether large packets were sent lately.
    pub fn is_large(&self, now: Instant) -> bool {
        self.large_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_active_for_a_time_after_packets_and_large_if_they_are() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut it = Activity::default();
        assert!(!it.record(0, 0, start) && !it.is_active(start));
        assert!(it.record(10, 840, start));
        assert!(it.is_active(start + second * 9) && !it.is_large(start));
        assert!(!it.record(11, 1840, start + second * 5));
        assert!(it.is_active(start + second * 14) && it.is_large(start + second * 14));
        assert!(!it.is_active(start + second * 15) && !it.is_large(start + second * 15));
        assert!(!it.record(5, 500, start + second * 20), "another peer");
    }
}
