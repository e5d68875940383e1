//! A real agent that reads its nodes from the API server.

use anyhow::{Context, Result, ensure};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer, PORT},
};
use ipip_testkit::{harness::Test, tests, wait};

pub const TESTS: &[Test<ApiServer>] = tests![
    a_node_publishes_its_fields_and_reports_when_it_is_ready,
    an_agent_waits_for_its_pod_cidr_and_readyz_says_so,
    an_invalid_annotation_is_reported_and_the_last_valid_value_stays,
    a_changed_public_address_is_followed_without_a_restart,
    a_node_that_conflicts_with_an_older_one_is_left_out_and_reported,
    a_node_deleted_while_the_agent_is_cut_off_is_removed_after_reconnection,
];

/// Creates a Node with the fields that the kubelet, the cloud and the user set.
pub fn node(server: &ApiServer, name: &str, ip: &str, cidr: &str, annotations: &str) -> Result<()> {
    let spec = match cidr {
        "" => "{}".into(),
        cidr => format!("{{podCIDR: {cidr}, podCIDRs: [{cidr}]}}"),
    };
    server.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, annotations: {{{annotations}}}}}, spec: {spec}}}"
    ))?;
    let status =
        format!(r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{ip}"}}]}}}}"#);
    server
        .kubectl(&["patch", "node", name, "--subresource=status", "-p", &status])
        .map(drop)
}

pub fn peer(server: &ApiServer, name: &str, n: u8) -> Result<()> {
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {{name: {name}}}, spec: {{internalIPs: [10.0.0.{n}], podCIDRs: [10.42.{n}.0/24]}}}}"
    ))
}

pub fn field(server: &ApiServer, kind: &str, name: &str, path: &str) -> Result<String> {
    server.kubectl(&["get", kind, name, "-o", &format!("jsonpath={path}")])
}

pub fn wait_field(
    server: &ApiServer,
    kind: &str,
    name: &str,
    path: &str,
    text: &str,
) -> Result<()> {
    let mut last = Ok(String::new());
    wait::until(&format!("{kind} {name} {path} is {text:?}"), || {
        last = field(server, kind, name, path);
        Ok(last.as_ref().is_ok_and(|found| found.contains(text)))
    })
    .with_context(|| format!("the last value is {last:?}"))
}

pub fn clean(server: &ApiServer) -> Result<()> {
    server.kubectl(&["delete", "ipn", "--all"])?;
    server.kubectl(&["delete", "ipb", "--all"])?;
    server.kubectl(&["delete", "nodes", "--all"])?;
    server.kubectl(&["delete", "events", "--all"]).map(drop)
}

pub const READY: &str = "{.status.conditions[?(@.type=='Ready')].status}";
const MESSAGE: &str = "{.status.conditions[?(@.type=='Ready')].message}";

fn a_node_publishes_its_fields_and_reports_when_it_is_ready(server: &ApiServer) -> Result<()> {
    let flannel = "flannel.alpha.coreos.com/public-ip-overwrite: 203.0.113.11";
    node(server, "a1", ADDRESS, "10.42.1.0/24", flannel)?;
    peer(server, "b1", 12)?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&["b1"])?;
    agent.wait_ready(200, "ok")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    let condition = "{.status.conditions[?(@.type=='NetworkUnavailable')].reason}";
    wait_field(server, "node", "a1", condition, "IpipReady")?;
    let table = server.kubectl(&["get", "ipn", "a1"])?;
    for cell in ["REALM", "203.0.113.11", r#"["10.42.1.0/24"]"#, "True"] {
        ensure!(table.contains(cell), "{cell}: {table}");
    }
    let owner = field(server, "ipn", "a1", "{.metadata.ownerReferences[0].uid}")?;
    ensure!(owner == field(server, "node", "a1", "{.metadata.uid}")?);
    drop(agent);
    clean(server)
}

fn an_agent_waits_for_its_pod_cidr_and_readyz_says_so(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(503, "no IPv4 pod CIDR yet")?;
    server.kubectl(&[
        "patch",
        "node",
        "a1",
        "-p",
        r#"{"spec":{"podCIDR":"10.42.1.0/24","podCIDRs":["10.42.1.0/24"]}}"#,
    ])?;
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn an_invalid_annotation_is_reported_and_the_last_valid_value_stays(
    server: &ApiServer,
) -> Result<()> {
    node(
        server,
        "a1",
        ADDRESS,
        "10.42.1.0/24",
        "ipip.dev/public-endpoint: 203.0.113.11",
    )?;
    let agent = ApiAgent::start(server, "a1")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    server.kubectl(&[
        "annotate",
        "--overwrite",
        "node",
        "a1",
        "ipip.dev/public-endpoint=203.0.113",
    ])?;
    wait_field(server, "ipn", "a1", MESSAGE, "\"203.0.113\" cannot be used")?;
    ensure!(field(server, "ipn", "a1", "{.spec.publicEndpoint}")? == "203.0.113.11");
    wait::until("an Event reports it", || {
        let events = server.kubectl(&["get", "events", "-A"])?;
        Ok(events.contains("IpipBadValue") && events.contains("node/a1"))
    })?;
    drop(agent);
    clean(server)
}

fn a_changed_public_address_is_followed_without_a_restart(server: &ApiServer) -> Result<()> {
    node(
        server,
        "a1",
        ADDRESS,
        "10.42.1.0/24",
        "ipip.dev/public-endpoint: 203.0.113.11",
    )?;
    let agent = ApiAgent::start(server, "a1")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    server.kubectl(&[
        "annotate",
        "--overwrite",
        "node",
        "a1",
        "ipip.dev/public-endpoint=203.0.113.99",
    ])?;
    wait_field(
        server,
        "ipn",
        "a1",
        "{.spec.publicEndpoint}",
        "203.0.113.99",
    )?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    drop(agent);
    clean(server)
}

fn a_node_that_conflicts_with_an_older_one_is_left_out_and_reported(
    server: &ApiServer,
) -> Result<()> {
    peer(server, "old", 12)?;
    peer(server, "b1", 13)?;
    // Creation times have a resolution of one second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    node(server, "a1", ADDRESS, "10.42.12.0/25", "")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(503, "overlaps 10.42.12.0/24 of old")?;
    wait_field(server, "ipn", "a1", READY, "False")?;
    wait_field(
        server,
        "ipn",
        "a1",
        MESSAGE,
        "overlaps 10.42.12.0/24 of old",
    )?;
    wait::until("an Event reports it", || {
        Ok(server
            .kubectl(&["get", "events", "-A"])?
            .contains("IpipLeftOut"))
    })?;
    server.kubectl(&["delete", "ipn", "old"])?;
    agent.wait_ready(200, "ok")?;
    agent.wait_peers(&["b1"])?;
    drop(agent);
    clean(server)
}

fn a_node_deleted_while_the_agent_is_cut_off_is_removed_after_reconnection(
    server: &ApiServer,
) -> Result<()> {
    const ELSEWHERE: u16 = PORT + 1;
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    peer(server, "b1", 12)?;
    peer(server, "c1", 13)?;
    let mut agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&["b1", "c1"])?;
    server.stop_server()?;
    wait::until("the agent logs that it is cut off", || {
        Ok(agent.log().contains("the API server does not answer"))
    })?;
    server.start_server(ELSEWHERE)?;
    server.kubectl_at(ELSEWHERE, &["delete", "ipn", "b1"])?;
    ensure!(
        agent.peers()? == ["b1", "c1"],
        "the datapath should keep its peers"
    );
    ensure!(agent.ready()?.status == 200, "the agent should stay ready");
    server.stop_server()?;
    server.start_server(PORT)?;
    agent
        .wait_peers(&["c1"])
        .or_else(|_| agent.wait_peers(&["c1"]))
        .or_else(|_| agent.wait_peers(&["c1"]))?;
    agent.expect_running()?;
    drop(agent);
    clean(server)
}
