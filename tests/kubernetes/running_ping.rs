//! Traffic between pods of two clouds.

use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::scenarios::Workloads;
use std::time::Duration;

/// A pod of a1 that pings one of another node, twenty times a second.
pub struct RunningPing {
    peer: String,
}

impl RunningPing {
    /// Between two packets.
    pub const INTERVAL: Duration = Duration::from_millis(50);

    /// Pings a pod of b1.
    pub fn start(workloads: &Workloads) -> Result<Self> {
        Self::to(workloads, "b1")
    }

    /// Pings a pod of this node.
    pub fn to(workloads: &Workloads, peer: &str) -> Result<Self> {
        let script = format!(
            "ping -i {} {} > /tmp/ping 2>&1 & echo $! > /tmp/ping.pid",
            Self::INTERVAL.as_secs_f64(),
            workloads.pod(peer)?
        );
        workloads.in_pod("on-a1", &script)?;
        Ok(Self { peer: peer.into() })
    }

    /// Ends it, and returns the numbers of packets that were sent and answered.
    pub fn stop(self, workloads: &Workloads) -> Result<(u32, u32)> {
        let script = "kill -INT $(cat /tmp/ping.pid); \
                      for i in $(seq 100); do grep -q received /tmp/ping && break; sleep 0.1; done; \
                      tail -n 3 /tmp/ping";
        let said = workloads.in_pod("on-a1", script)?;
        let count = |what: &str| -> Option<u32> {
            let before = said.split(what).next()?.trim_end();
            before.rsplit([' ', '\n']).next()?.parse().ok()
        };
        let counts = count("packets transmitted").zip(count("packets received"));
        let (sent, received) = counts.with_context(|| format!("ping printed {said}"))?;
        Ok((sent, received))
    }

    /// Ends it, and fails unless every request was answered.
    pub fn expect_no_loss(self, workloads: &Workloads) -> Result<()> {
        let peer = self.peer.clone();
        let (sent, received) = self.stop(workloads)?;
        ensure!(sent > 100, "only {sent} packets were sent");
        ensure!(
            // The last answer may not have arrived yet.
            sent - received <= 1,
            "pods of a1 and {peer} lost {} of {sent} packets",
            sent - received
        );
        Ok(())
    }
}
