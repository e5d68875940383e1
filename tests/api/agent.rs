//! A real agent that reads its nodes from the API server.

use anyhow::{Context, Result, ensure};
use ipip_abi::probe::ProbeSecret;
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer, PORT},
};
use ipip_testkit::{harness::Test, host::Host, node_maps, tests, wait};

pub const TESTS: &[Test<ApiServer>] = tests![
    a_node_publishes_its_fields_and_reports_when_it_is_ready,
    a_node_publishes_its_probe_key_and_has_a_secret_with_each_peer_that_does,
    an_agent_waits_for_its_pod_cidr_and_readyz_says_so,
    an_invalid_annotation_is_reported_and_the_last_valid_value_stays,
    a_changed_public_address_is_followed_without_a_restart,
    a_node_whose_pod_cidr_belongs_to_an_older_one_is_not_ready_and_reported,
    a_node_with_the_public_endpoint_of_an_older_one_is_ready_and_reported,
    a_renamed_node_is_told_to_delete_its_old_node_and_heals,
    internal_ips_change_their_order_and_leave_without_a_new_object,
    a_node_with_more_internal_ips_than_an_object_holds_uses_the_first_ones_and_reports_the_rest,
    a_node_is_told_that_a_machine_elsewhere_has_its_address,
    an_agent_publishes_a_machine_of_its_network_that_has_the_address_of_a_remote_node,
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
    published(
        server,
        name,
        &format!("10.0.0.{n}"),
        &format!("10.42.{n}.0/24"),
        "",
    )
}

/// Creates a Node and the objects of its agent with these values. `more` is added to the IpipNode.
pub fn published(server: &ApiServer, name: &str, ip: &str, cidr: &str, more: &str) -> Result<()> {
    node(server, name, ip, cidr, "")?;
    object(
        server,
        name,
        &format!("internalIPs: [{ip}], podCIDRs: [{cidr}]{more}"),
    )
}

/// Creates the objects of a node as its agent would, with these fields of the IpipNode.
pub fn object(server: &ApiServer, name: &str, values: &str) -> Result<()> {
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipClaim, metadata: {{name: {name}.0}}, spec: {{node: {name}, {values}}}}}"
    ))?;
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {{name: {name}}}, spec: {{{values}}}}}"
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

/// Waits for an Event with this reason on the Node a1.
pub fn wait_event(server: &ApiServer, reason: &str) -> Result<()> {
    wait::until(&format!("an Event {reason}"), || {
        let events = server.kubectl(&["get", "events", "-A"])?;
        Ok(events.contains(reason) && events.contains("node/a1"))
    })
}

/// Sets the InternalIPs in the status of the Node a1.
pub fn set_internal_ips(server: &ApiServer, ips: &[&str]) -> Result<()> {
    set_addresses(server, "a1", ips)
}

/// Sets the InternalIPs in the status of a Node, as its kubelet does.
pub fn set_addresses(server: &ApiServer, name: &str, ips: &[&str]) -> Result<()> {
    let address = |ip: &&str| format!(r#"{{"type":"InternalIP","address":"{ip}"}}"#);
    let addresses: Vec<String> = ips.iter().map(address).collect();
    let status = format!(r#"{{"status":{{"addresses":[{}]}}}}"#, addresses.join(","));
    let patch = ["--subresource=status", "--type=merge", "-p", &status];
    server
        .kubectl(&[&["patch", "node", name][..], &patch].concat())
        .map(drop)
}

/// Waits until creation times, which have a resolution of one second, are later than those so far.
pub fn next_second() {
    std::thread::sleep(std::time::Duration::from_millis(1100));
}

pub fn clean(server: &ApiServer) -> Result<()> {
    server.kubectl(&["delete", "ipn", "--all"])?;
    server.kubectl(&["delete", "ipc", "--all"])?;
    server.kubectl(&["delete", "ipb", "--all"])?;
    server.kubectl(&["delete", "nodes", "--all"])?;
    server.kubectl(&["delete", "events", "--all"]).map(drop)
}

pub const READY: &str = "{.status.conditions[?(@.type=='Ready')].status}";
pub const MESSAGE: &str = "{.status.conditions[?(@.type=='Ready')].message}";

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

fn a_node_publishes_its_probe_key_and_has_a_secret_with_each_peer_that_does(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    peer(server, "b1", 12)?;
    peer(server, "c1", 13)?;
    let key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let set_key = |name: &str| {
        let patch = format!(r#"{{"spec":{{"probeKey":"{key}"}}}}"#);
        server.kubectl(&["patch", "ipn", name, "--type=merge", "-p", &patch])
    };
    set_key("b1")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    let published = || field(server, "ipn", "a1", "{.spec.probeKey}");
    wait::until("a1 has a probe key", || Ok(published()?.len() == 44))?;
    let maps = agent.maps()?;
    let ids = node_maps::peers(&maps)?;
    let secret =
        |name: &str| -> Result<ProbeSecret> { Ok(maps.probe_secrets.get(&ids[name].into(), 0)?) };
    let has_secret = |name: &str| Ok(secret(name)?.is_set());
    wait::until("there is a secret with b1", || has_secret("b1"))?;
    ensure!(!has_secret("c1")?);
    // Who publishes the key of another node takes nothing from it.
    set_key("c1")?;
    wait::until("there is a secret with c1", || has_secret("c1"))?;
    ensure!(has_secret("b1")? && secret("b1")?.key != secret("c1")?.key);
    let before = published()?;
    drop(agent);
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    ensure!(published()? == before, "a restart changes the key");
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
    wait_event(server, "IpipBadValue")?;
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

fn a_node_whose_pod_cidr_belongs_to_an_older_one_is_not_ready_and_reported(
    server: &ApiServer,
) -> Result<()> {
    peer(server, "old", 12)?;
    peer(server, "b1", 13)?;
    next_second();
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
    wait_event(server, "IpipLeftOut")?;
    server.kubectl(&["delete", "ipn", "old"])?;
    agent.wait_ready(200, "ok")?;
    agent.wait_peers(&["b1"])?;
    drop(agent);
    clean(server)
}

fn a_node_with_the_public_endpoint_of_an_older_one_is_ready_and_reported(
    server: &ApiServer,
) -> Result<()> {
    let its_endpoint = ", publicEndpoint: 203.0.113.12";
    published(server, "old", "10.0.0.12", "10.42.12.0/24", its_endpoint)?;
    next_second();
    let endpoint = "ipip.dev/public-endpoint: 203.0.113.12";
    node(server, "a1", ADDRESS, "10.42.1.0/24", endpoint)?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    agent.wait_peers(&["old"])?;
    let why = "is also the publicEndpoint of old";
    wait_field(server, "ipn", "a1", MESSAGE, why)?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    wait_event(server, "IpipContested")?;
    server.kubectl(&["delete", "ipn", "old"])?;
    wait_field(server, "ipn", "a1", MESSAGE, "in sync")?;
    drop(agent);
    clean(server)
}

fn a_renamed_node_is_told_to_delete_its_old_node_and_heals(server: &ApiServer) -> Result<()> {
    published(server, "old", ADDRESS, "10.42.12.0/24", "")?;
    next_second();
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(503, "kubectl delete node old")?;
    wait_event(server, "IpipLeftOut")?;
    server.kubectl(&["delete", "ipn", "old"])?;
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn internal_ips_change_their_order_and_leave_without_a_new_object(
    server: &ApiServer,
) -> Result<()> {
    const IPS: &str = "{.spec.internalIPs}";
    let uid = || field(server, "ipn", "a1", "{.metadata.uid}");
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    set_internal_ips(server, &[ADDRESS, "10.0.0.201", "10.0.0.202"])?;
    let agent = ApiAgent::start(server, "a1")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    let (before, object) = (field(server, "ipn", "a1", IPS)?, uid()?);
    set_internal_ips(server, &["10.0.0.202", ADDRESS, "10.0.0.201"])?;
    set_internal_ips(server, &["10.0.0.202", "10.0.0.201", ADDRESS])?;
    // The agent has seen the changes of the order when it has seen this one.
    server.kubectl(&["annotate", "node", "a1", "ipip.dev/encapsulation=udp"])?;
    wait_field(server, "ipn", "a1", "{.spec.encapsulation}", "udp")?;
    ensure!(field(server, "ipn", "a1", IPS)? == before);
    set_internal_ips(server, &["10.0.0.202", ADDRESS])?;
    let after = before.replace(r#","10.0.0.201""#, "");
    wait::until("the InternalIP leaves the object", || {
        Ok(field(server, "ipn", "a1", IPS)? == after)
    })?;
    ensure!(uid()? == object, "it is another object");
    drop(agent);
    clean(server)
}

fn a_node_with_more_internal_ips_than_an_object_holds_uses_the_first_ones_and_reports_the_rest(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    let more: Vec<String> = (1..=69).map(|n| format!("10.9.0.{n}")).collect();
    let mut ips: Vec<&str> = more.iter().map(String::as_str).collect();
    ips.insert(0, ADDRESS);
    set_internal_ips(server, &ips)?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    let count = field(server, "ipn", "a1", "{.spec.internalIPs[63]}")?;
    ensure!(count == "10.9.0.63", "{count}");
    wait_field(server, "ipn", "a1", MESSAGE, "10.9.0.64 and 5 more")?;
    wait_event(server, "IpipBadValue")?;
    drop(agent);
    clean(server)
}

fn a_node_is_told_that_a_machine_elsewhere_has_its_address(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    peer(server, "b1", 12)?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    // As the agent of b1 does when a machine of its network answers.
    let report = |addresses: &str| {
        let status = format!(r#"{{"status":{{"lanConflicts":[{addresses}]}}}}"#);
        let subresource = ["--subresource=status", "--type=merge", "-p", &status];
        server.kubectl(&[&["patch", "ipn", "b1"][..], &subresource].concat())
    };
    report(&format!("{ADDRESS:?}"))?;
    let why = "is also the address of a machine in the network of b1";
    wait_field(server, "ipn", "a1", MESSAGE, why)?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    wait_event(server, "IpipLanConflict")?;
    report("")?;
    wait_field(server, "ipn", "a1", MESSAGE, "in sync")?;
    drop(agent);
    clean(server)
}

fn an_agent_publishes_a_machine_of_its_network_that_has_the_address_of_a_remote_node(
    server: &ApiServer,
) -> Result<()> {
    const SHARED: &str = "10.0.0.12";
    const CONFLICTS: &str = "{.status.lanConflicts}";
    node(
        server,
        "a1",
        ADDRESS,
        "10.42.1.0/24",
        "ipip.dev/public-endpoint: 203.0.113.11",
    )?;
    let elsewhere = ", realm: cloud-b, publicEndpoint: 198.51.100.12";
    published(server, "b1", SHARED, "10.42.12.0/24", elsewhere)?;
    let host = server.host();
    let machine = Host::create(format!("{}-machine", host.name()), server.trash())?;
    // The agent's network is the veth between `eth0` and `eth0-far`.
    host.ip(&format!("link set eth0-far netns {}", machine.name()))?;
    machine.ip("link set eth0-far up")?;
    machine.ip(&format!("address add {SHARED}/24 dev eth0-far"))?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    wait_field(server, "ipn", "a1", CONFLICTS, SHARED)?;
    wait_field(server, "ipn", "a1", MESSAGE, "10.0.0.12 of node b1 is also")?;
    wait_event(server, "IpipLanConflict")?;
    drop(agent);
    machine.ip(&format!("link set eth0-far netns {}", host.name()))?;
    host.ip("link set eth0-far up")?;
    machine.remove(server.trash())?;
    // What is not found any more leaves the status.
    host.ip("neighbour flush dev eth0")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    wait::until("the conflict leaves the status", || {
        Ok(!field(server, "ipn", "a1", CONFLICTS)?.contains(SHARED))
    })?;
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
