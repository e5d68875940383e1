//! The numbers as a table and as JSON.

use crate::{output, statistics::quantiles};
use serde_json::{Value, json};
use std::time::Duration;

/// The results of the benchmark.
pub struct SyncReport {
    /// Nodes of the cluster.
    pub nodes: u32,
    /// The time from the agent's start to its readiness.
    pub cold_sync: Duration,
    /// The times from the request of each change to the change in the maps.
    pub latencies: Vec<Duration>,
    /// The rate of the changes.
    pub changes_per_second: u32,
    /// Resident memory of the agent at the end.
    pub resident_kib: u64,
    /// The greatest resident memory of the agent.
    pub peak_resident_kib: u64,
    /// Bytes per second that the agent received from the API server while nothing changed.
    pub idle_bytes_per_second: f64,
}

impl SyncReport {
    /// A row for each number, with its target.
    pub fn table(&self) -> String {
        let [p50, p99, max] = self.latency_ms();
        let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        let rows = [
            (
                format!("{} nodes, agent start to ready", self.nodes),
                format!("{:.2} s", self.cold_sync.as_secs_f64()),
                "5 s",
            ),
            (
                format!(
                    "change to map, p50 of {} at {}/s",
                    self.latencies.len(),
                    self.changes_per_second
                ),
                format!("{p50} ms"),
                "",
            ),
            ("change to map, p99".into(), format!("{p99} ms"), "100 ms"),
            ("change to map, max".into(), format!("{max} ms"), ""),
            ("agent, resident".into(), mib(self.resident_kib), "48 MiB"),
            (
                "agent, resident at its peak".into(),
                mib(self.peak_resident_kib),
                "",
            ),
            (
                "API server to agent, without changes".into(),
                format!("{:.0} B/s", self.idle_bytes_per_second),
                "",
            ),
        ];
        output::targets(rows)
    }

    /// All numbers.
    pub fn json(&self) -> Value {
        let [p50, p99, max] = self.latency_ms();
        json!({
            "nodes": self.nodes,
            "cold_sync_ms": self.cold_sync.as_millis() as u64,
            "changes": self.latencies.len(),
            "changes_per_second": self.changes_per_second,
            "change_to_map_p50_ms": p50,
            "change_to_map_p99_ms": p99,
            "change_to_map_max_ms": max,
            "agent_rss_kib": self.resident_kib,
            "agent_peak_rss_kib": self.peak_resident_kib,
            "idle_bytes_per_second": self.idle_bytes_per_second.round(),
        })
    }

    /// Median, 99th percentile and maximum in whole milliseconds.
    fn latency_ms(&self) -> [u64; 3] {
        let milliseconds = self.latencies.iter().map(|it| it.as_secs_f64() * 1e3);
        quantiles(milliseconds.collect(), [0.5, 0.99, 1.0]).map(|it| it as u64)
    }
}
