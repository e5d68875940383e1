//! The operator's tools: ipipctl, `--check` and `uninstall`.

use anyhow::{Context, Result, ensure};
use ipip_lab::{
    Lab, LabNode,
    hints::{self, Hint},
};
use ipip_testkit::{
    harness::Test,
    ping::{Answer, Ping},
    shell, tests,
};
use serde_json::Value;
use std::process::Command;

pub const TESTS: &[Test<Lab>] = tests![
    ipipctl_reads_everything_from_the_pins_without_the_agent,
    ipipctl_fails_with_a_reason_if_there_is_no_datapath,
    commands_that_the_demo_prints_work_as_printed,
    check_accepts_the_configuration,
];

pub const UNINSTALL_TESTS: &[Test<Lab>] =
    tests![uninstall_removes_everything_and_the_node_stays_reachable];

fn ipipctl_reads_everything_from_the_pins_without_the_agent(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    node.kill_agent()?;
    let read = reads_everything(node);
    node.restart_agent()?;
    read
}

fn reads_everything(node: &LabNode) -> Result<()> {
    for verb in ["status", "peers", "drops", "dump"] {
        let text = shell::printed(verb, Ok(node.ipipctl(&[verb])?))?;
        ensure!(!text.trim().is_empty(), "`ipipctl {verb}` printed nothing");
        if verb == "peers" {
            for peer in ["a2", "b1", "c1"] {
                ensure!(text.contains(peer), "no {peer} in\n{text}");
            }
        }
        let first = node.ipipctl_json(&[verb])?;
        ensure!(!first.is_null(), "`ipipctl {verb} -o json` is null");
    }
    Ok(())
}

fn ipipctl_fails_with_a_reason_if_there_is_no_datapath(lab: &Lab) -> Result<()> {
    let output = lab
        .node("a1")?
        .output(Command::new(shell::own_program("ipipctl")?).args([
            "--pin-root",
            "/sys/fs/bpf/ipip-not-there",
            "status",
        ]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("/sys/fs/bpf/ipip-not-there"),
        "{output:?}"
    );
    Ok(())
}

fn commands_that_the_demo_prints_work_as_printed(lab: &Lab) -> Result<()> {
    for Hint { what, command } in hints::machines(lab) {
        let listing = typed(&format!("{command} ip -brief address"))?;
        ensure!(listing.contains("127.0.0.1"), "{what}: {listing}");
    }
    let shown = hints::datapath(lab)?;
    ensure!(shown.len() == 4, "{shown:?}");
    for Hint { what, command } in shown {
        let text = typed(&command)?;
        ensure!(!text.trim().is_empty(), "{what} is empty");
        if what.starts_with("status") {
            let status: Value = serde_json::from_str(&typed(&format!("{command} -o json"))?)?;
            let attached = status["attached"].as_array().context("no list")?;
            ensure!(!attached.is_empty(), "nothing is attached: {status}");
            let is_intact = |program: &Value| program["defunct"] == false;
            ensure!(attached.iter().all(is_intact), "{status}");
        }
    }
    Ok(())
}

/// Runs a command line in a shell outside of the lab, and returns what it prints.
fn typed(line: &str) -> Result<String> {
    shell::printed(line, Command::new("sh").args(["-c", line]).output())
}

fn check_accepts_the_configuration(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let mut command = node.agent_command()?;
    let output = node.output(command.arg("--check"))?;
    shell::printed("ipip-agent --check", Ok(output)).map(drop)
}

fn uninstall_removes_everything_and_the_node_stays_reachable(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    // A node of the same kind, on which no agent has run.
    let never = Lab::build(lab.topology().clone())?;
    let untouched = state_of(never.node("a1")?)?;
    Ping::to(lab.pod("a2")?.address()).reply_ttl(lab.pod("a1")?)?;
    ensure!(state_of(node)? != untouched, "the agent changed nothing");
    node.stop_agent()?;
    ensure!(node.pins().exist(), "SIGTERM leaves the pins");
    let mut command = node.agent_command()?;
    shell::printed("uninstall", Ok(node.output(command.arg("uninstall"))?))?;
    let left = state_of(node)?;
    ensure!(
        left == untouched,
        "left behind:\n{left}\ninstead of:\n{untouched}"
    );
    ensure!(!node.pins().root().exists(), "the pins are still there");
    ensure!(!node.folder().join("state").exists(), "the state is there");
    // The node is still reachable.
    Ping::to(node.internal_ip()).reply_ttl(lab.node("a2")?)?;
    let answer = Ping::to(lab.pod("a2")?.address()).send(lab.pod("a1")?)?;
    ensure!(
        !matches!(answer, Answer::Reply { .. }),
        "still tunnelled: {answer:?}"
    );

    node.restart_agent()?;
    let pod = lab.start_pod("a1", "later")?;
    Ping::to(lab.pod("a2")?.address()).reply_ttl(&pod)?;
    pod.delete()
}

/// Links, routes, rules and sysctls of a node, without those of its pods, and without names of its lab.
fn state_of(node: &LabNode) -> Result<String> {
    let mut state = String::new();
    for (what, arguments) in [
        ("ip", &["-br", "link"][..]),
        // Only IPv4: IPv6 addresses appear later, after duplicate address detection.
        ("ip", &["-4", "route", "show", "table", "all"]),
        ("ip", &["rule"]),
        ("nft", &["list", "ruleset"]),
        ("tc", &["qdisc"]),
        (
            "sysctl",
            &[
                "net.ipv4.ip_forward",
                "net.ipv4.conf.eth0.forwarding",
                "net.ipv4.conf.eth0.rp_filter",
            ],
        ),
    ] {
        let output = node.output(Command::new(what).args(arguments))?;
        for line in shell::printed(what, Ok(output))?.lines() {
            // MACs are random. The plugin's veths and routes belong to the pods.
            let words: Vec<&str> = line
                .split_whitespace()
                .filter(|word| word.matches(':').count() != 5)
                .collect();
            if !words.iter().any(|word| word.starts_with("pod")) {
                state += &words.join(" ");
                state.push('\n');
            }
        }
    }
    Ok(state)
}
