//! A fixed rate.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Turns at equal intervals. A thread that is late does not sleep until it has caught up, so the rate holds.
pub struct Pace {
    next: Instant,
    interval: Duration,
}

impl Pace {
    /// Starts now.
    pub fn new(per_second: f64) -> Self {
        Self {
            next: Instant::now(),
            interval: Duration::from_secs_f64(1.0 / per_second),
        }
    }

    /// Sleeps until the next turn.
    pub fn wait(&mut self) {
        self.next += self.interval;
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}
