//! Firewalls of the host, and rules that other programs remove.

use anyhow::{Result, ensure};
use ipip_lab::{Lab, LabNode, service::Service, topology::WEB};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    tests, wait,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, Output},
    time::Duration,
};

pub const TESTS: &[Test<Lab>] = tests![
    a_forward_policy_of_drop_stops_neither_internet_access_nor_services_nor_host_ports,
    accept_rules_that_a_reload_removes_return,
    a_firewall_that_drops_forwarded_packets_is_reported_with_the_commands_that_help,
    iptables_legacy_that_drops_forwarded_packets_is_reported_with_the_commands_that_help,
    after_a_flush_of_all_rules_flows_that_began_in_between_get_nat,
];

const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
const PORT: u16 = 8080;

/// A node with rules of iptables. Removes all rules of iptables when dropped.
struct Iptables<'a>(&'a LabNode);

impl Iptables<'_> {
    fn run(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("iptables");
        let output = self.0.output(command.args(arguments.split_whitespace()))?;
        ensure!(
            output.status.success(),
            "iptables {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn wait_for_jump(&self) -> Result<()> {
        wait::until("FORWARD accepts packets of pods", || {
            Ok(self.run("-S FORWARD")?.contains("-j IPIP-FORWARD"))
        })
    }
}

impl Drop for Iptables<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.nft("delete table ip filter") {
            eprintln!("removing the rules of iptables: {error:#}");
        }
    }
}

fn a_forward_policy_of_drop_stops_neither_internet_access_nor_services_nor_host_ports(
    lab: &Lab,
) -> Result<()> {
    let (node, pod, remote) = (lab.node("a1")?, lab.pod("a1")?, lab.pod("b1")?);
    let iptables = Iptables(node);
    iptables.run("-P FORWARD DROP")?;
    iptables.wait_for_jump()?;
    let web = &lab.fabric().web;
    let _web = EchoServer::start(web, 80)?;
    let _servers = [pod, remote].map(|it| EchoServer::start(it, PORT));
    let outside = |port| anyhow::Ok(SocketAddrV4::new(node.public()?, port));
    let service = |endpoint: SocketAddrV4, node_port, masquerade| Service {
        cluster: CLUSTER,
        node_port,
        endpoint,
        masquerade,
    };

    let at = SocketAddrV4::new(WEB, 80);
    tcp_exchange(pod, 0, at, 300_000)?;
    udp_exchange(pod, 0, at, 1000)?;
    {
        let _service = service(remote.at(PORT), 30_090, true).install(node)?;
        tcp_exchange(pod, 0, CLUSTER, 300_000)?;
        udp_exchange(pod, 0, CLUSTER, 1000)?;
        tcp_exchange(web, 0, outside(30_090)?, 300_000)?;
        udp_exchange(web, 0, outside(30_090)?, 1000)?;
    }
    // As portmap does for a hostPort.
    let _host_port = service(pod.at(PORT), 30_091, false).install(node)?;
    tcp_exchange(web, 0, outside(30_091)?, 300_000)?;
    udp_exchange(web, 0, outside(30_091)?, 1000)?;
    Ok(())
}

fn accept_rules_that_a_reload_removes_return(lab: &Lab) -> Result<()> {
    let node = lab.node("a2")?;
    let iptables = Iptables(node);
    iptables.run("-P FORWARD DROP")?;
    iptables.wait_for_jump()?;
    for change in ["-F", "-F FORWARD"] {
        let before = node.repaired("ForwardAccept")?;
        iptables.run(change)?;
        iptables.wait_for_jump()?;
        wait::until("the repair is counted", || {
            Ok(node.repaired("ForwardAccept")? > before)
        })?;
    }
    let _web = EchoServer::start(&lab.fabric().web, 80)?;
    tcp_exchange(lab.pod("a2")?, 0, SocketAddrV4::new(WEB, 80), 1000)?;
    Ok(())
}

/// A table of `nft` that drops what a node forwards. It is deleted when dropped.
struct OtherFirewall<'a>(&'a LabNode);

impl<'a> OtherFirewall<'a> {
    fn load(node: &'a LabNode) -> Result<Self> {
        node.nft(
            "table inet host {
                chain forward {
                    type filter hook forward priority filter; policy drop;
                    ct state established,related accept
                }
            }",
        )?;
        Ok(Self(node))
    }
}

impl Drop for OtherFirewall<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.nft("delete table inet host") {
            eprintln!("removing a firewall: {error:#}");
        }
    }
}

/// Rules of iptables-legacy that drop what a node forwards. They are deleted when dropped.
struct LegacyFirewall<'a>(&'a LabNode);

impl<'a> LegacyFirewall<'a> {
    fn load(node: &'a LabNode) -> Result<Self> {
        let firewall = Self(node);
        for arguments in [
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-P FORWARD DROP",
        ] {
            let output = legacy(node, arguments)?;
            ensure!(output.status.success(), "{arguments}: {output:?}");
        }
        Ok(firewall)
    }
}

impl Drop for LegacyFirewall<'_> {
    fn drop(&mut self) {
        for arguments in ["-P FORWARD ACCEPT", "-F FORWARD"] {
            if let Err(error) = legacy(self.0, arguments) {
                eprintln!("removing the rules of iptables-legacy: {error:#}");
            }
        }
    }
}

fn legacy(node: &LabNode, arguments: &str) -> Result<Output> {
    let mut command = Command::new("iptables-legacy");
    node.output(command.args(arguments.split_whitespace()))
}

/// The text of the problem with firewalls that `ipipctl status` shows.
fn firewall_problem(node: &LabNode) -> Result<Option<String>> {
    let status = node.ipipctl_json(&["status"])?;
    let problems = status["agent"]["problems"].as_array().cloned();
    let found = problems
        .unwrap_or_default()
        .into_iter()
        .find(|it| it["reason"] == "FirewallDropsPods");
    Ok(found.map(|it| it["text"].as_str().unwrap_or_default().to_owned()))
}

fn a_firewall_that_drops_forwarded_packets_is_reported_with_the_commands_that_help(
    lab: &Lab,
) -> Result<()> {
    let node = lab.node("b1")?;
    is_reported_with_the_commands_that_help(lab, node, OtherFirewall::load(node)?)
}

/// The kernel announces no change of its rules, so the agent sees them at its next resync.
fn iptables_legacy_that_drops_forwarded_packets_is_reported_with_the_commands_that_help(
    lab: &Lab,
) -> Result<()> {
    let node = lab.node("b1")?;
    if !legacy(node, "-S")?.status.success() {
        eprintln!("no iptables-legacy, or a kernel without it");
        return Ok(());
    }
    is_reported_with_the_commands_that_help(lab, node, LegacyFirewall::load(node)?)
}

fn is_reported_with_the_commands_that_help<Firewall>(
    lab: &Lab,
    node: &LabNode,
    firewall: Firewall,
) -> Result<()> {
    // The promise of the documentation.
    wait::within(Duration::from_secs(35), "the firewall is reported", || {
        Ok(firewall_problem(node)?.is_some())
    })?;
    let text = firewall_problem(node)?.unwrap_or_default();
    let answer = node.ready()?;
    ensure!(
        answer.status == 503 && answer.body.contains(&text),
        "readyz: {} {}",
        answer.status,
        answer.body
    );
    let Some(remedy) = text.split('`').nth(1) else {
        anyhow::bail!("no commands in {text}");
    };
    let output = node.output(Command::new("sh").args(["-c", remedy]))?;
    ensure!(output.status.success(), "{remedy}: {output:?}");
    let _web = EchoServer::start(&lab.fabric().web, 80)?;
    tcp_exchange(lab.pod("b1")?, 0, SocketAddrV4::new(WEB, 80), 1000)?;
    drop(firewall);
    wait::within(Duration::from_secs(35), "the node is ready again", || {
        Ok(firewall_problem(node)?.is_none() && node.ready()?.status == 200)
    })
}

fn after_a_flush_of_all_rules_flows_that_began_in_between_get_nat(lab: &Lab) -> Result<()> {
    let (node, pod) = (lab.node("a1")?, lab.pod("a1")?);
    let _web = EchoServer::start(&lab.fabric().web, 80)?;
    let before = node.repaired("Masquerade")?;
    let client = pod.udp(0)?;
    client.set_read_timeout(Some(Duration::from_millis(200)))?;
    client.connect(SocketAddrV4::new(WEB, 80))?;
    // The other NAT chain makes the kernel remember that the flow is not translated. One transaction: the agent cannot
    // be faster than the first packet.
    node.nft(
        "flush ruleset
        table ip other {
            chain post { type nat hook postrouting priority srcnat; }
        }",
    )?;
    client.send(b"first")?;
    wait::until("the flow gets the node's address", || {
        client.send(b"again")?;
        let mut answer = [0; 64];
        match client.recv(&mut answer) {
            Ok(len) => {
                let seen = String::from_utf8_lossy(&answer[..len]);
                ensure!(seen.starts_with(&node.public()?.to_string()), "{seen}");
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    })?;
    node.nft("delete table ip other")?;
    wait::until("the repair is counted", || {
        Ok(node.repaired("Masquerade")? > before)
    })?;
    ensure!(
        node.log_tail(50).contains("set again: the nftables table"),
        "no line in the log"
    );
    Ok(())
}
