//! CPU time of the whole machine: both nodes, the router between them, and the load itself.

use anyhow::{Context, Result};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Measures time since its start: wall-clock time, and CPU time of the whole machine.
pub struct CpuTimer {
    at: Instant,
    cpus: usize,
    idle: Duration,
}

impl CpuTimer {
    /// Starts to measure.
    pub fn start() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self {
            at: Instant::now(),
            // All CPUs of the machine; the process may be bound to one of them.
            cpus: stat.lines().filter(|it| it.starts_with("cpu")).count() - 1,
            idle: idle(&stat)
                .with_context(|| format!("unknown format of /proc/stat: {stat:.80}"))?,
        })
    }

    /// Wall-clock seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }

    /// Seconds since the start in which a CPU was not idle, summed over all CPUs. The kernel takes idle time
    /// from a clock, but samples the other states once per tick; hence the difference to idle time.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let now = Self::start()?;
        let elapsed = now.at.duration_since(self.at).as_secs_f64();
        let idle = now.idle.saturating_sub(self.idle).as_secs_f64();
        Ok((elapsed * self.cpus as f64 - idle).max(0.0))
    }
}

/// Time in which a CPU did not work for this machine: idle, waiting for disks, or stolen by the hypervisor.
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
    fn idle_waiting_and_stolen_time_are_not_cpu_time() {
        let stat = "cpu  10 20 30 400 5 6 7 3 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(idle(stat), Some(Duration::from_millis(4080)));
        assert_eq!(idle("cpu 1 2 3"), None);
    }
}
