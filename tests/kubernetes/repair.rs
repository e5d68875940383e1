//! Another program changes kernel settings of a node.

use crate::ipipctl;
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::{Machine, scenarios::Workloads};
use ipip_testkit::{harness::Test, tests, wait};
use serde_json::Value;
use std::time::Duration;

/// An agent resyncs every 30 seconds.
const MAX_WAIT: Duration = Duration::from_secs(90);
const KEY: &str = "net.ipv4.conf.ipip0.rp_filter";
/// Where the agent's container has the host's settings.
const MOUNTED: &str = "/host/proc/sys/net";

pub const TESTS: &[Test<Workloads>] = tests![
    a_changed_kernel_setting_is_set_again_and_later_changes_are_followed,
    a_kernel_setting_that_cannot_be_set_is_reported_and_later_changes_are_followed,
];

fn a_changed_kernel_setting_is_set_again_and_later_changes_are_followed(
    workloads: &Workloads,
) -> Result<()> {
    let a1 = workloads.cluster.machine("a1")?;
    a1.run("sysctl", &["-w", &format!("{KEY}=1")])?;
    wait::until("the agent sets it again", || {
        Ok(a1.run("sysctl", &["-n", KEY])?.trim() == "2")
    })?;
    let repaired = status(a1)?["agent"]["repairs"]["Sysctl"].clone();
    ensure!(repaired.as_u64() >= Some(1), "counted: {repaired}");
    follows_b1(workloads, a1)
}

fn a_kernel_setting_that_cannot_be_set_is_reported_and_later_changes_are_followed(
    workloads: &Workloads,
) -> Result<()> {
    let a1 = workloads.cluster.machine("a1")?;
    mount(a1, "ro")?;
    a1.run("sysctl", &["-w", &format!("{KEY}=1")])?;
    let reported = is_reported(workloads, a1).and_then(|()| follows_b1(workloads, a1));
    mount(a1, "rw")?;
    reported?;
    wait::within(MAX_WAIT, "the agent sets it and is ready", || {
        Ok(a1.run("sysctl", &["-n", KEY])?.trim() == "2"
            && status(a1)?["agent"]["ready"] == true
            && is_ready(workloads)?)
    })
}

fn is_reported(workloads: &Workloads, a1: &Machine) -> Result<()> {
    wait::within(
        MAX_WAIT,
        "the Event, the status and readiness say it",
        || {
            let described = workloads.cluster.kubectl(&["describe", "node", "a1"])?;
            let status = status(a1)?;
            let problems = status["agent"]["problems"].as_array();
            let is_ours = |it: &Value| it["reason"] == "KernelSetting" && it["blocks"] == true;
            Ok(described.contains("IpipKernelSetting")
                && described.contains(KEY)
                && problems.is_some_and(|all| all.iter().any(is_ours))
                && !is_ready(workloads)?)
        },
    )
    .with_context(|| format!("{:#}", status(a1).unwrap_or_default()))
}

/// Expects that a1 sends to another public endpoint of b1 while b1's Node has an annotation.
fn follows_b1(workloads: &Workloads, a1: &Machine) -> Result<()> {
    let right = workloads.public("b1")?;
    let annotate = |endpoint: &str| {
        let annotation = format!("ipip.dev/public-endpoint={endpoint}");
        let annotate = ["annotate", "--overwrite", "node", "b1", &annotation];
        workloads.cluster.kubectl(&annotate).map(drop)
    };
    let sends_to = |endpoint: &str| {
        wait::within(MAX_WAIT, &format!("a1 sends to {endpoint}"), || {
            let peers = ipipctl(a1, &["peers"])?;
            let mut rows = peers.as_array().into_iter().flatten();
            let b1 = rows.find(|row| row["node"] == "b1");
            Ok(b1.is_some_and(|row| row.to_string().contains(&format!("\"{endpoint}\""))))
        })
        .with_context(|| format!("{:#}", ipipctl(a1, &["peers"]).unwrap_or_default()))
    };
    annotate("198.51.100.99")?;
    let followed = sends_to("198.51.100.99");
    annotate(&right.to_string())?;
    followed?;
    sends_to(&right.to_string())
}

/// Whether every agent is ready.
fn is_ready(workloads: &Workloads) -> Result<bool> {
    let agents = workloads
        .cluster
        .get("daemonset/ipip-agent", Some("kube-system"))?;
    let status = &agents["status"];
    Ok(status["numberReady"] == status["desiredNumberScheduled"])
}

/// Changes the mount of the host's settings in the agent's container to `ro` or `rw`.
fn mount(node: &Machine, mode: &str) -> Result<()> {
    let agent = "for folder in /proc/[0-9]*; do \
                   [ \"$(basename \"$(readlink $folder/exe)\")\" = ipip-agent ] || continue; \
                   [ \"$(readlink $folder/ns/net)\" = \"$(readlink /proc/self/ns/net)\" ] || continue; \
                   echo ${folder#/proc/}; \
                 done";
    let pids = node.run("sh", &["-c", agent])?;
    let pid = pids.split_whitespace().next().context("no agent runs")?;
    let options = format!("remount,bind,{mode}");
    node.run("mount", &["--namespace", pid, "-o", &options, MOUNTED])
        .map(drop)
}

fn status(node: &Machine) -> Result<Value> {
    ipipctl(node, &["status"])
}
