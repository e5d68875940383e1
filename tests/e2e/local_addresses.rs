//! Machines of a node's own network that are no nodes, and have the InternalIP of a node in another cloud.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, LabNode, Topology, foreign_machine::ForeignMachine};
use ipip_testkit::{
    echo::{self, EchoServer},
    harness::Test,
    host::Host,
    ping::Ping,
    tests, wait,
};
use std::{fs, net::SocketAddrV4, path::PathBuf};

pub const TESTS: &[Test<Lab>] = tests![
    a_machine_of_the_lan_with_the_address_of_a_remote_node_is_reported_and_changes_no_route,
    a_resolver_of_the_lan_keeps_its_address_from_a_remote_node,
    a_machine_of_the_lan_that_the_settings_name_is_reached_although_a_remote_node_claims_its_address,
];

const PORT: u16 = 5432;
/// The MAC of every machine, so that neighbour entries of an earlier one lead to the next one.
const MAC: &str = "02:00:00:00:54:32";

/// Three clouds, whose nodes read their resolvers from a file of their own.
pub fn topology() -> Topology {
    let mut topology = Topology::three_clouds();
    topology.agent.resolver_files = Some(vec![resolver_file()]);
    topology
}

fn resolver_file() -> PathBuf {
    std::env::temp_dir().join(format!("ipip-{}-resolv.conf", std::process::id()))
}

/// A machine in cloud a with the InternalIP of b1.
fn start_machine(lab: &Lab) -> Result<ForeignMachine<'_>> {
    let gateway = lab.fabric().gateway("cloud-a")?;
    let address = lab.node("b1")?.internal_ip();
    let machine =
        ForeignMachine::connect(lab.prefix(), lab.trash(), (gateway, "machine"), address)?;
    machine.host.ip(&format!("link set eth0 address {MAC}"))?;
    gateway.ip("link set machine master lan0")?;
    Ok(machine)
}

/// The same with a server, which a1 does not reach.
fn start_server(lab: &Lab) -> Result<(ForeignMachine<'_>, EchoServer, SocketAddrV4)> {
    let machine = start_machine(lab)?;
    let server = EchoServer::start(&machine.host, PORT)?;
    let to = SocketAddrV4::new(machine.address, PORT);
    let refused = echo::tcp_exchange(lab.node("a1")?, 0, to, 64);
    ensure!(refused.is_err(), "b1 has no server, but {refused:?}");
    Ok((machine, server, to))
}

/// What `ipipctl peers` says about b1.
fn why(node: &LabNode) -> Result<String> {
    let peers = node.ipipctl_json(&["peers"])?;
    let rows = peers.as_array().context("not a list")?;
    let row = rows.iter().find(|row| row["node"] == "b1");
    let why = row.and_then(|row| row["why"].as_str());
    Ok(why.context("b1 is no peer")?.to_owned())
}

fn wait_why(node: &LabNode, text: &str, is_said: bool) -> Result<()> {
    wait::until(&format!("{text:?} is said about b1: {is_said}"), || {
        Ok(why(node)?.contains(text) == is_said)
    })
}

fn a_machine_of_the_lan_with_the_address_of_a_remote_node_is_reported_and_changes_no_route(
    lab: &Lab,
) -> Result<()> {
    const NOTE: &str = "a machine of this network answers for its InternalIP, too";
    let a1 = lab.node("a1")?;
    let address = lab.node("b1")?.internal_ip();
    let machine = start_machine(lab)?;
    // The agent asks when it starts, and then every few minutes.
    a1.stop_agent()?;
    a1.start_agent()?;
    wait_why(a1, NOTE, true)?;
    let route = a1.ip(&format!("route get {address}"))?;
    ensure!(route.contains("dev ipip0"), "{route}");
    let said = format!("{address} of node b1 is also the address of a machine in this network");
    wait::until("the agent logs it", || Ok(a1.log_tail(40).contains(&said)))?;
    drop(machine);
    a1.stop_agent()?;
    a1.start_agent()?;
    wait_why(a1, NOTE, false)
}

fn a_resolver_of_the_lan_keeps_its_address_from_a_remote_node(lab: &Lab) -> Result<()> {
    const NOTE: &str = "an InternalIP of it stays with this node's own network";
    let (a1, pod) = (lab.node("a1")?, lab.pod("a1")?);
    let address = lab.node("b1")?.internal_ip();
    let (_machine, _server, to) = start_server(lab)?;
    fs::write(resolver_file(), format!("nameserver {address}\n"))?;
    // The agent looks at the host again when a route has changed, and every half minute.
    a1.ip("route add unreachable 198.18.99.0/24")?;
    wait_why(a1, NOTE, true)?;
    for from in [&**a1 as &Host, pod] {
        echo::tcp_exchange(from, 0, to, 64)?;
    }
    fs::remove_file(resolver_file())?;
    a1.ip("route del unreachable 198.18.99.0/24")?;
    wait_why(a1, NOTE, false)
}

fn a_machine_of_the_lan_that_the_settings_name_is_reached_although_a_remote_node_claims_its_address(
    lab: &Lab,
) -> Result<()> {
    const NOTE: &str = "an InternalIP of it stays with this node's own network";
    let (a1, pod) = (lab.node("a1")?, lab.pod("a1")?);
    let address = lab.node("b1")?.internal_ip();
    let (_machine, _server, to) = start_server(lab)?;

    let file = a1.folder().join("agent.yaml");
    let before = fs::read_to_string(&file)?;
    fs::write(&file, format!("{before}\nlocalAddresses: [{address}]\n"))?;
    a1.stop_agent()?;
    a1.restart_agent()?;
    wait_why(a1, NOTE, true)?;
    let route = a1.ip(&format!("route get {address}"))?;
    ensure!(route.contains("dev eth0"), "{route}");
    for from in [&**a1 as &Host, pod] {
        echo::tcp_exchange(from, 0, to, 64)?;
    }
    // Only the address stays here: the pods of b1 are reached.
    Ping::to(lab.pod("b1")?.address()).reply_ttl(pod)?;

    fs::write(&file, before)?;
    a1.stop_agent()?;
    a1.restart_agent()?;
    wait_why(a1, NOTE, false)?;
    let route = a1.ip(&format!("route get {address}"))?;
    ensure!(route.contains("dev ipip0"), "{route}");
    Ok(())
}
