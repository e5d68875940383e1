//! How fast one agent follows thousands of nodes of a real API server, and what that costs.

mod changes;
mod cluster;
mod report;
mod traffic;

use anyhow::{Context, Result, ensure};
use clap::Args;
use cluster::ApiCluster;
use ipip_lab::api_agent::ApiAgent;
use ipip_testkit::trash::empty_all_on_interrupt;
use report::SyncReport;
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// Longest time from the agent's start to its readiness.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Time after the last change before idle traffic is measured.
const SETTLE: Duration = Duration::from_secs(3);

/// Arguments of the benchmark `sync`.
#[derive(Debug, Args)]
pub struct SyncOptions {
    /// Nodes of the cluster
    #[arg(long, value_name = "N", default_value_t = 5000)]
    nodes: u32,
    /// Changes per second
    #[arg(long, value_name = "N", default_value_t = 50)]
    rate: u32,
    /// Seconds of changes
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u32,
    /// Seconds without changes, in which idle traffic is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
    /// Also write the numbers to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl SyncOptions {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        ensure!(self.nodes > 0, "--nodes is 0; remedy: use 1 or more");
        ensure!(self.rate > 0, "--rate is 0; remedy: use 1 or more");
        ensure!(self.seconds > 0, "--seconds is 0; remedy: use 1 or more");
        ensure!(self.idle > 0, "--idle is 0; remedy: use 1 or more");
        empty_all_on_interrupt()?;
        let cluster = ApiCluster::start(self.nodes)?;
        let began = Instant::now();
        let agent = ApiAgent::start(&cluster.server, cluster::OWN_NODE)?;
        wait_until_ready(&agent)?;
        let cold_sync = began.elapsed();
        let peers = agent.peers()?.len();
        ensure!(
            peers == self.nodes as usize,
            "the agent is ready, but its maps have {peers} peers instead of {}",
            self.nodes
        );
        let latencies = changes::measure(&cluster, &agent, self.rate, self.rate * self.seconds)?;
        thread::sleep(SETTLE);
        let idle = traffic::received(&cluster.server, Duration::from_secs(self.idle))?;
        let report = SyncReport {
            nodes: self.nodes,
            cold_sync,
            latencies,
            changes_per_second: self.rate,
            resident_kib: memory_kib(agent.pid(), "VmRSS")?,
            peak_resident_kib: memory_kib(agent.pid(), "VmHWM")?,
            idle_bytes_per_second: idle as f64 / self.idle as f64,
        };
        println!("{}", report.table());
        let json = report.json();
        println!("{json}");
        if let Some(path) = &self.json {
            fs::write(path, format!("{json}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn wait_until_ready(agent: &ApiAgent<'_>) -> Result<()> {
    let began = Instant::now();
    // Polls more often than `wait::within`, because this time is one of the results.
    while agent.ready().ok().is_none_or(|answer| answer.status != 200) {
        ensure!(
            began.elapsed() < READY_TIMEOUT,
            "the agent is not ready after {READY_TIMEOUT:?}:\n{}",
            agent.log()
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A value of /proc/PID/status in KiB.
fn memory_kib(pid: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut lines = text.lines();
    let value = lines
        .find(|line| line.starts_with(field))
        .and_then(|line| line.split_whitespace().nth(1))
        .with_context(|| format!("{path} has no {field}"))?;
    Ok(value.parse()?)
}
