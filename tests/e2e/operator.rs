//! What the operator's tools show and remove.

use crate::harness::{Test, tests};
use anyhow::{Result, ensure};
use ipip_tests::{
    Lab, Node,
    ping::{Answer, Ping},
    shell,
};
use std::process::Command;

pub const TESTS: &[Test] = tests![
    ipipctl_reads_everything_from_the_pins_without_the_agent,
    ipipctl_fails_and_says_why_where_there_is_no_datapath,
    check_of_the_configuration_finds_nothing_wrong,
];

pub const UNINSTALL_TESTS: &[Test] =
    tests![uninstall_removes_everything_and_the_node_stays_reachable];

fn ipipctl_reads_everything_from_the_pins_without_the_agent(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    node.kill_agent()?;
    let read = reads_everything(node);
    node.restart_agent()?;
    read
}

fn reads_everything(node: &Node) -> Result<()> {
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

fn ipipctl_fails_and_says_why_where_there_is_no_datapath(lab: &Lab) -> Result<()> {
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

fn check_of_the_configuration_finds_nothing_wrong(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let mut command = node.agent_command()?;
    let output = node.output(command.arg("--check"))?;
    shell::printed("ipip-agent --check", Ok(output)).map(drop)
}

fn uninstall_removes_everything_and_the_node_stays_reachable(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    Ping::to(lab.pod("a2")?.address()).reply_ttl(lab.pod("a1")?)?;
    node.stop_agent()?;
    ensure!(node.pins().exist(), "SIGTERM leaves the pins");
    let mut command = node.agent_command()?;
    shell::printed("uninstall", Ok(node.output(command.arg("uninstall"))?))?;
    ensure!(!node.pins().exist(), "the pins are still there");
    ensure!(!node.pins().version_dir().exists());
    let links = node.ip("link")?;
    ensure!(!links.contains("ipip0"), "still there:\n{links}");
    let routes = node.ip("route")?;
    ensure!(
        !routes.contains("ipip0") && !routes.contains("10.42.2.0"),
        "still there:\n{routes}"
    );
    let rules = shell::printed(
        "nft list ruleset",
        Ok(node.output(Command::new("nft").args(["list", "ruleset"]))?),
    )?;
    ensure!(!rules.contains("ipip"), "still there:\n{rules}");
    // Nobody is locked out.
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
