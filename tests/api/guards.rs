//! What keeps an agent from doing harm when the cluster around it is broken.

use crate::agent::{READY, clean, field, node, peer, wait_event, wait_field};
use anyhow::{Result, ensure};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer},
};
use ipip_testkit::{harness::Test, shell, tests, wait};
use std::{fs, net::TcpListener, thread::sleep, time::Duration};

pub const TESTS: &[Test<ApiServer>] = tests![
    an_agent_whose_token_could_write_objects_of_other_nodes_is_not_ready_and_follows_nothing,
    peers_that_disappear_with_the_crd_are_held_and_leave_with_their_nodes,
    a_process_that_takes_the_health_port_does_not_stop_the_agent,
    an_object_of_a_newer_version_is_used_as_far_as_it_is_understood,
    a_status_that_cannot_be_read_keeps_nobody_from_following_the_cluster,
];

const CIDR: &str = "10.42.1.0/24";
const POLICIES: [&str; 2] = ["ipip-agent-objects", "ipip-agent-blocks"];

fn an_agent_whose_token_could_write_objects_of_other_nodes_is_not_ready_and_follows_nothing(
    server: &ApiServer,
) -> Result<()> {
    let why = "the token of this agent can write objects of other nodes";
    node(server, "a1", ADDRESS, CIDR, "")?;
    peer(server, "b1", 12)?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    for policy in POLICIES {
        server.kubectl(&["delete", "validatingadmissionpolicybinding", policy])?;
    }
    wait::within(Duration::from_secs(90), "the agent is not ready", || {
        let answer = agent.ready()?;
        Ok(answer.status == 503 && answer.body.contains(why))
    })?;
    peer(server, "c1", 13)?;
    server.kubectl(&["annotate", "node", "a1", "ipip.dev/encapsulation=udp"])?;
    sleep(Duration::from_secs(3));
    ensure!(agent.peers()? == ["b1"], "{:?}", agent.peers()?);
    let encapsulation = field(server, "ipn", "a1", "{.spec.encapsulation}")?;
    ensure!(encapsulation.is_empty(), "{encapsulation}");
    drop(agent);

    // From the start, too: this agent writes nothing at all.
    server.kubectl(&["delete", "ipn/a1", "ipc/a1.0"])?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(503, why)?;
    agent.wait_ready(
        503,
        "remedy: kubectl apply -f manifests/base/admission.yaml",
    )?;
    sleep(Duration::from_secs(3));
    ensure!(field(server, "ipn", "a1", READY).is_err());
    ensure!(field(server, "ipc", "a1.0", "{.spec}").is_err());
    server.apply_manifests()?;
    wait::within(Duration::from_secs(90), "the agent is ready", || {
        Ok(agent.ready()?.status == 200)
    })?;
    agent.wait_peers(&["b1", "c1"])?;
    wait_field(server, "ipn", "a1", "{.spec.encapsulation}", "udp")?;
    drop(agent);
    clean(server)
}

fn peers_that_disappear_with_the_crd_are_held_and_leave_with_their_nodes(
    server: &ApiServer,
) -> Result<()> {
    let peers = ["b1", "b2", "b3", "b4"];
    node(server, "a1", ADDRESS, CIDR, "")?;
    for (n, name) in (12..).zip(peers) {
        node(server, name, &format!("10.0.0.{n}"), "", "")?;
        peer(server, name, n)?;
    }
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&peers)?;
    agent.wait_ready(200, "ok")?;
    server.kubectl(&["delete", "crd", "ipipnodes.ipip.dev"])?;
    wait_event(server, "IpipPeersHeld")?;
    sleep(Duration::from_secs(10));
    ensure!(agent.peers()? == peers, "{:?}", agent.peers()?);
    ensure!(agent.ready()?.status == 200, "{:?}", agent.ready()?);

    server.kubectl(&["delete", "node", "b1"])?;
    wait::within(Duration::from_secs(60), "b1 leaves", || {
        Ok(agent.peers()? == ["b2", "b3", "b4"])
    })?;
    server.apply_manifests()?;
    for (n, name) in (13..).zip(&peers[1..]) {
        server.kubectl(&["delete", "--ignore-not-found", "ipc", &format!("{name}.0")])?;
        peer(server, name, n)?;
    }
    wait::within(Duration::from_secs(90), "nobody is held any more", || {
        Ok(agent.log().contains("solved: most IpipNodes were deleted"))
    })?;
    ensure!(agent.peers()? == ["b2", "b3", "b4"], "{:?}", agent.peers()?);
    wait_field(server, "ipn", "a1", READY, "True")?;
    drop(agent);
    clean(server)
}

fn a_process_that_takes_the_health_port_does_not_stop_the_agent(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, CIDR, "")?;
    peer(server, "b1", 12)?;
    let taken = server
        .host()
        .enter(|| TcpListener::bind("127.0.0.1:9878"))??;
    let mut agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&["b1"])?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    wait_event(server, "IpipHealthNotServed")?;
    agent.expect_running()?;
    drop(taken);
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn an_object_of_a_newer_version_is_used_as_far_as_it_is_understood(
    server: &ApiServer,
) -> Result<()> {
    // The CRDs of the newer version come first.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/base/crd.yaml");
    let crd = fs::read_to_string(path)?;
    let newer = crd
        .replacen(
            "                - direct\n",
            "                - direct\n                - wireguard\n",
            1,
        )
        .replacen(
            "              encapsulation:\n",
            "              relay:\n                type: boolean\n              encapsulation:\n",
            1,
        );
    ensure!(newer.len() > crd.len() + 70, "the CRD has another form now");
    server.apply(&newer)?;
    node(server, "a1", ADDRESS, CIDR, "")?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    let values = "internalIPs: [10.0.0.12], podCIDRs: [10.42.12.0/24]";
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {{name: b1}}, spec: {{{values}, encapsulation: wireguard, relay: true}}}}"
    ))?;
    agent.wait_peers(&["b1"])?;
    let why = "left out: node b1: encapsulation: \"wireguard\" is not an encapsulation";
    wait::until("the agent reports it", || Ok(agent.log().contains(why)))?;
    ensure!(agent.ready()?.status == 200, "{:?}", agent.ready()?);
    drop(agent);
    clean(server)?;
    server.apply_manifests()
}

fn a_status_that_cannot_be_read_keeps_nobody_from_following_the_cluster(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, CIDR, "")?;
    node(server, "evil", "10.0.0.66", "", "")?;
    peer(server, "b1", 12)?;
    let uid = field(server, "node", "evil", "{.metadata.uid}")?;
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {{name: evil, ownerReferences: [{{apiVersion: v1, kind: Node, name: evil, uid: {uid}}}]}}, spec: {{internalIPs: [10.0.0.66], podCIDRs: [10.42.66.0/24]}}}}"
    ))?;
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_peers(&["b1", "evil"])?;
    // The API server accepts this time; it is later than the client of the agents can represent.
    let status = r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"R","message":"","lastTransitionTime":"9999-12-31T23:59:59Z"}]}}"#;
    let token = server.agent_token("evil")?;
    let patch = [
        "patch",
        "ipn",
        "evil",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    shell::printed("kubectl patch", Ok(server.kubectl_as(&token, &patch)?))?;
    peer(server, "c1", 13)?;
    agent.wait_peers(&["b1", "c1", "evil"])?;
    drop(agent);
    let agent = ApiAgent::start(server, "a1")?;
    agent.wait_ready(200, "ok")?;
    agent.wait_peers(&["b1", "c1", "evil"])?;
    drop(agent);
    clean(server)
}
