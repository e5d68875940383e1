//! What is sent to a peer.

use std::time::{Duration, Instant};

/// A peer counts as active for so long after the last packet that was sent to it.
const ACTIVE: Duration = Duration::from_secs(10);

/// The traffic to a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activity {
    active_until: Option<Instant>,
    large_until: Option<Instant>,
}

impl Activity {
    /// Records that there are packets to the peer. Returns whether it begins to be active.
    pub fn sent(&mut self, now: Instant) -> bool {
        let was_active = self.is_active(now);
        self.active_until = Some(now + ACTIVE);
        !was_active
    }

    /// Records that large ones are among them.
    pub fn sent_large(&mut self, now: Instant) {
        self.large_until = Some(now + ACTIVE);
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
        assert!(!it.is_active(start));
        assert!(it.sent(start));
        assert!(it.is_active(start + second * 9) && !it.is_large(start));
        assert!(!it.sent(start + second * 5));
        it.sent_large(start + second * 5);
        assert!(it.is_active(start + second * 14) && it.is_large(start + second * 14));
        assert!(!it.is_active(start + second * 15) && !it.is_large(start + second * 15));
        assert!(it.sent(start + second * 20) && !it.is_large(start + second * 20));
    }
}
