//! The numbers as a table and as JSON.

use crate::{output, statistics::Summary};
use serde_json::{Value, json};

/// Load of an agent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Percent of one CPU, in user space and in the kernel.
    pub cpu: f64,
    /// Probes a second.
    pub probes: f64,
    /// Bits a second of probes and answers, with their outer headers.
    pub bits: f64,
}

/// The results of the benchmark.
pub struct PeersReport {
    /// All peers.
    pub peers: u32,
    /// Those with traffic.
    pub active: u32,
    /// Without traffic.
    pub idle: Load,
    /// With traffic to the active peers.
    pub busy: Load,
    /// Seconds after the failure in which active peers got another path.
    pub left_after: Vec<f64>,
}

impl PeersReport {
    /// A row for each number, with its target.
    pub fn table(&self) -> String {
        let Self { peers, active, .. } = self;
        let percent = |it: f64| format!("{it:.2} %");
        let left_after = Summary::of(self.left_after.clone());
        let rows = [
            (
                format!("{peers} idle peers, CPU of the agent"),
                percent(self.idle.cpu),
                "0.3 %",
            ),
            (
                "their probes".into(),
                format!("{:.1} /s", self.idle.probes),
                "",
            ),
            (
                "their probes and answers".into(),
                format!("{:.1} kbit/s", self.idle.bits / 1e3),
                "32 kbit/s",
            ),
            (
                format!("{active} of them active, CPU in addition"),
                percent(self.busy.cpu - self.idle.cpu),
                "1 %",
            ),
            (
                "probes of all".into(),
                format!("{:.1} /s", self.busy.probes),
                "",
            ),
            (
                format!("{active} active paths fail: left after, s"),
                left_after.map_or_else(String::new, Summary::text),
                "10 s",
            ),
        ];
        output::targets(rows)
    }

    /// All numbers.
    pub fn json(&self) -> Value {
        let load = |it: Load| {
            json!({
                "cpu_percent": it.cpu,
                "probes_per_second": it.probes,
                "bits_per_second": it.bits,
            })
        };
        json!({
            "peers": self.peers,
            "active": self.active,
            "idle": load(self.idle),
            "busy": load(self.busy),
            "left_after_seconds": self.left_after,
        })
    }
}
