//! CPU time of the whole machine: both nodes, the router between them, and the load itself.

use anyhow::{Context, Result};
use std::{
    fs,
    time::{Duration, Instant},
};

/// A moment, and how long the CPUs had been idle by then.
pub struct Mark {
    at: Instant,
    cpus: usize,
    idle: Duration,
}

impl Mark {
    /// Now.
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            // Not those that this process may use: it may be bound to one.
            cpus: stat.lines().filter(|it| it.starts_with("cpu")).count() - 1,
            idle: idle(&stat).with_context(|| format!("/proc/stat reads {stat:.80}"))?,
        })
    }

    /// Wall-clock seconds since.
    pub fn seconds(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }

    /// Seconds that all CPUs together were not idle since. The kernel takes the time of idleness from
    /// a clock, while it samples by ticks what else a CPU does.
    pub fn busy(&self) -> Result<f64> {
        let now = Self::now()?;
        let elapsed = now.at.duration_since(self.at).as_secs_f64();
        let idle = now.idle.saturating_sub(self.idle).as_secs_f64();
        Ok((elapsed * self.cpus as f64 - idle).max(0.0))
    }
}

/// Time that no CPU of this machine worked for us: idle, waiting for disks, stolen by the host.
fn idle(stat: &str) -> Option<Duration> {
    // proc(5): user nice system idle iowait irq softirq steal, in hundredths of a second.
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse().ok())
        .collect();
    let ticks = fields.get(3)? + fields.get(4)? + fields.get(7)?;
    Some(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_are_not_busy() {
        let stat = "cpu  10 20 30 400 5 6 7 3 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(idle(stat), Some(Duration::from_millis(4080)));
        assert_eq!(idle("cpu 1 2 3"), None);
    }
}
