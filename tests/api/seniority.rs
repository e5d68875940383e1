//! Nodes that contest each other's values: attacks with the token of an agent, and mistakes of people.

use crate::{
    agent::{
        MESSAGE, READY, clean, field, next_second, node, peer, published, set_addresses,
        wait_event, wait_field,
    },
    evil::Evil,
};
use anyhow::{Result, ensure};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer},
};
use ipip_testkit::{harness::Test, tests, wait};

pub const TESTS: &[Test<ApiServer>] = tests![
    a_node_that_changes_or_loses_its_object_keeps_what_another_node_waits_for,
    an_old_node_that_takes_the_values_of_a_younger_one_does_not_get_them,
    a_younger_node_of_another_realm_does_not_get_an_internal_ip_and_is_told,
    an_object_that_a_finalizer_holds_is_no_peer,
];

const UID: &str = "{.metadata.uid}";
const CIDR: &str = "10.42.1.0/24";

/// The node `evil`. Its Node has the values of a1, too, as with the credentials of its kubelet: otherwise no agent would use
/// them.
fn evil(server: &ApiServer) -> Result<Evil<'_>> {
    node(server, "evil", "10.0.0.66", CIDR, "")?;
    set_addresses(server, "evil", &["10.0.0.66", ADDRESS])?;
    Evil::of(server)
}

impl Evil<'_> {
    /// Writes a claim for these values, and publishes them.
    fn publishes(&self, number: u8, values: &str) -> Result<()> {
        let claim = format!("evil.{number}");
        self.writes("IpipClaim", &claim, &format!("node: evil, {values}"))?;
        self.writes("IpipNode", "evil", values)
    }
}

fn annotate(server: &ApiServer, endpoint: &str) -> Result<()> {
    let annotation = format!("ipip.dev/public-endpoint={endpoint}");
    server.kubectl(&["annotate", "--overwrite", "node", "a1", &annotation])?;
    wait_field(server, "ipn", "a1", "{.spec.publicEndpoint}", endpoint)
}

/// The lines of an agent's log since `start`, its length before.
fn log_since(agent: &ApiAgent<'_>, start: usize) -> String {
    agent.log().split_off(start)
}

/// Waits until the agent has left this value of `evil` out.
fn wait_left_out(agent: &ApiAgent<'_>, start: usize, why: &str) -> Result<()> {
    let line = format!("left out: node evil: {why}");
    wait::until(&format!("the agent logs {line:?}"), || {
        Ok(log_since(agent, start).contains(&line))
    })
}

/// Fails if the agent has lost a value since `start`, or `evil` has got one.
fn ensure_nothing_moved(agent: &ApiAgent<'_>, start: usize) -> Result<()> {
    let log = log_since(agent, start);
    let is_one = |line: &str| line.contains(ADDRESS) || line.contains(CIDR);
    let moved = |line: &str| line.contains("no longer left out") && is_one(line);
    ensure!(!log.lines().any(moved) && !log.contains("LeftOut"), "{log}");
    ensure!(agent.ready()?.status == 200, "{:?}", agent.ready()?);
    Ok(())
}

fn a_node_that_changes_or_loses_its_object_keeps_what_another_node_waits_for(
    server: &ApiServer,
) -> Result<()> {
    let endpoint = "ipip.dev/public-endpoint: 203.0.113.11";
    node(server, "a1", ADDRESS, CIDR, endpoint)?;
    let agent = ApiAgent::start(server, "a1")?;
    let start = agent.log().len();
    agent.wait_ready(200, "ok")?;
    let uid = field(server, "ipn", "a1", UID)?;
    next_second();
    let evil = evil(server)?;
    evil.publishes(
        0,
        &format!("internalIPs: [{ADDRESS}, 10.0.0.66], podCIDRs: [{CIDR}]"),
    )?;
    wait_left_out(&agent, start, &format!("podCIDRs: \"{CIDR}\" overlaps"))?;
    wait_left_out(
        &agent,
        start,
        &format!("internalIPs: \"{ADDRESS}\" is also"),
    )?;

    annotate(server, "203.0.113.12")?;
    ensure!(
        field(server, "ipn", "a1", UID)? == uid,
        "it is another object"
    );
    let keeps_all = || -> Result<()> {
        agent.wait_peers(&["evil"])?;
        wait_field(server, "ipn", "a1", READY, "True")?;
        wait_field(server, "ipn", "a1", MESSAGE, "in sync")?;
        ensure_nothing_moved(&agent, start)
    };
    keeps_all()?;
    // As a person who follows an old advice, and as after a restart of every agent.
    server.kubectl(&["delete", "ipn", "a1"])?;
    wait::until("there is another IpipNode", || {
        Ok(field(server, "ipn", "a1", UID).is_ok_and(|it| it != uid))
    })?;
    keeps_all()?;
    drop(agent);
    let agent = ApiAgent::start(server, "a1")?;
    let start = agent.log().len();
    agent.wait_ready(200, "ok")?;
    wait_left_out(&agent, start, &format!("podCIDRs: \"{CIDR}\" overlaps"))?;
    ensure_nothing_moved(&agent, start)?;
    drop(agent);
    clean(server)
}

fn an_old_node_that_takes_the_values_of_a_younger_one_does_not_get_them(
    server: &ApiServer,
) -> Result<()> {
    let evil = evil(server)?;
    evil.publishes(0, "internalIPs: [10.0.0.66], podCIDRs: [10.42.66.0/24]")?;
    next_second();
    let endpoint = "ipip.dev/public-endpoint: 203.0.113.11";
    node(server, "a1", ADDRESS, CIDR, endpoint)?;
    let agent = ApiAgent::start(server, "a1")?;
    let start = agent.log().len();
    agent.wait_ready(200, "ok")?;
    // First without a claim for the new values, then with one.
    let stolen =
        format!("internalIPs: [{ADDRESS}], podCIDRs: [{CIDR}], publicEndpoint: 203.0.113.11");
    evil.writes("IpipNode", "evil", &stolen)?;
    for why in [
        format!("internalIPs: \"{ADDRESS}\" is also an InternalIP of a1"),
        format!("podCIDRs: \"{CIDR}\" overlaps {CIDR} of a1"),
        "publicEndpoint: \"203.0.113.11\" is also the publicEndpoint of a1".into(),
    ] {
        wait_left_out(&agent, start, &why)?;
    }
    evil.publishes(1, &stolen)?;
    peer(server, "b1", 12)?;
    agent.wait_peers(&["b1", "evil"])?;
    ensure_nothing_moved(&agent, start)?;
    drop(agent);
    clean(server)
}

fn a_younger_node_of_another_realm_does_not_get_an_internal_ip_and_is_told(
    server: &ApiServer,
) -> Result<()> {
    published(
        server,
        "old",
        ADDRESS,
        "10.42.12.0/24",
        ", realm: elsewhere",
    )?;
    next_second();
    node(server, "a1", ADDRESS, CIDR, "")?;
    let agent = ApiAgent::start(server, "a1")?;
    let why = format!(
        "{ADDRESS} is also an InternalIP of old in the realm \"elsewhere\", which claimed it first"
    );
    wait_field(server, "ipn", "a1", MESSAGE, &why)?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    wait_event(server, "IpipContested")?;
    server.kubectl(&["delete", "ipn/old", "ipc/old.0"])?;
    wait_field(server, "ipn", "a1", MESSAGE, "in sync")?;
    drop(agent);
    clean(server)
}

fn an_object_that_a_finalizer_holds_is_no_peer(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, CIDR, "")?;
    peer(server, "b1", 12)?;
    peer(server, "c1", 13)?;
    let held = |finalizers: &str, name: &str| {
        let patch = format!(r#"{{"metadata":{{"finalizers":{finalizers}}}}}"#);
        server.kubectl(&["patch", "ipn", name, "--type=merge", "-p", &patch])
    };
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&["b1", "c1"])?;
    held(r#"["example.org/held"]"#, "b1")?;
    held(r#"["example.org/held"]"#, "a1")?;
    server.kubectl(&["delete", "--wait=false", "ipn", "b1", "a1"])?;
    agent.wait_peers(&["c1"])?;
    held("[]", "b1")?;
    // This node's own object is written again as soon as that is possible.
    held("[]", "a1")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    drop(agent);
    clean(server)
}
