//! One measurement: starts a server and a client process in the pods of a setup, and reads the result that one of
//! them prints.

use super::{
    metrics::{Case, Load, Services},
    setup::{PodSetup, kube_proxy::CLUSTER_IP},
    uplink_profile::Schedule,
};
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use ipip_testkit::host::Host;
use serde::{Deserialize, Serialize};
use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

/// The result of one measurement, as the measuring process prints it in JSON.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Measured {
    /// Bytes, round trips, connections or packets.
    pub per_second: f64,
    /// CPU seconds of the whole machine for each of them.
    pub cpu_seconds_each: f64,
    /// Median round-trip time; 0 if the load has no round trips.
    pub median_us: f64,
    /// 99th percentile of the round-trip times; 0 if the load has no round trips.
    pub p99_us: f64,
}

/// Measures `case` between the pods of `setup`.
pub fn measure(setup: &PodSetup, case: &Case, schedule: &Schedule) -> Result<Measured> {
    let (client, server) = if case.reverse { (1, 0) } else { (0, 1) };
    let address = match case.services {
        Services::Through => CLUSTER_IP,
        Services::Absent | Services::Beside => setup.address(server),
    };
    let arguments = [
        load_name(case.load),
        case.flows.to_string(),
        schedule.warm_up.as_millis().to_string(),
        schedule.measure.as_millis().to_string(),
    ];
    let mut server = LoadProcess::start(setup.pod(server), &["server"], &arguments)?;
    let ready = server.line()?;
    ensure!(
        ready.trim() == "ready",
        "the server printed {ready:?} instead of \"ready\""
    );
    let address = address.to_string();
    let mut client = LoadProcess::start(setup.pod(client), &["client", &address], &arguments)?;
    let measuring = if case.load.is_measured_by_client() {
        &mut client
    } else {
        &mut server
    };
    let line = measuring.line()?;
    serde_json::from_str(&line).with_context(|| format!("not a measurement: {line}"))
}

/// The client or the server, in a pod. Dropping it kills it.
struct LoadProcess {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl LoadProcess {
    fn start(host: &Host, part: &[&str], arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(part)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = host.enter(|| command.spawn())??;
        let output = child.stdout.take().context("a child without output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    /// The next line that it prints.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!(
                "a load process ended before it printed a result: {}",
                self.child.wait()?
            );
        }
        Ok(line)
    }
}

impl Drop for LoadProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The name that the command line of [`super::endpoint`] has for a load.
fn load_name(load: Load) -> String {
    load.to_possible_value()
        .map(|value| value.get_name().to_string())
        .unwrap_or_default()
}
