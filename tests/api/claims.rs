//! What a node can claim with its agent's token, and with its kubelet's credentials. Each test names the component that
//! rejects the claim: an admission policy, or every agent that reads it.

use crate::{
    agent::{clean, node, object, set_addresses},
    evil::Evil,
};
use anyhow::{Result, ensure};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer},
};
use ipip_testkit::{harness::Test, tests, wait};
use ipnetwork::Ipv4Network;

pub const TESTS: &[Test<ApiServer>] = tests![
    a_token_takes_no_service_range,
    a_token_takes_no_address_of_a_load_balancer_and_no_range_outside_of_the_cluster,
    a_token_takes_no_machine_of_its_own_realm_and_no_bastion,
    a_token_takes_no_range_of_a_node_that_has_not_joined_yet,
    a_policy_refuses_ranges_wider_than_a_16,
    a_policy_limits_a_node_to_one_block_that_is_not_wider_than_a_16,
    the_policies_apply_in_every_namespace,
    with_a_kubelets_credentials_no_address_of_services_or_pods_is_taken,
    with_a_kubelets_credentials_no_range_outside_of_the_settings_is_taken,
    a_node_of_which_a_value_is_left_out_reports_it_itself,
    a_claim_is_used_as_soon_as_its_node_backs_it,
];

const EVIL_CIDR: &str = "10.42.66.0/24";

/// Creates the Node `evil`, as its kubelet and kube-controller-manager do.
fn evil(server: &ApiServer) -> Result<Evil<'_>> {
    node(server, "evil", "10.0.0.66", EVIL_CIDR, "")?;
    Evil::of(server)
}

impl Evil<'_> {
    /// Claims these values. Returns what the API server says.
    fn claim(&self, internal_ips: &str, pod_cidrs: &str) -> Result<Result<String, String>> {
        let spec = format!("internalIPs: [{internal_ips}], podCIDRs: [{pod_cidrs}]");
        self.apply("IpipNode", "evil", &spec)
    }

    /// Claims these values, which the API server accepts.
    fn claims(&self, internal_ips: &str, pod_cidrs: &str) -> Result<()> {
        let answer = self.claim(internal_ips, pod_cidrs)?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(())
    }
}

/// The prefixes that lead to peers, sorted.
pub fn routes(agent: &ApiAgent<'_>) -> Result<Vec<Ipv4Network>> {
    let mut found = Vec::new();
    for entry in agent.maps()?.routes.iter() {
        let (key, route) = entry?;
        if route.peer != 0 {
            let length = u8::try_from(key.prefix_len())?;
            found.push(Ipv4Network::new(key.data().into(), length)?);
        }
    }
    found.sort();
    Ok(found)
}

/// Waits until the agent uses exactly these prefixes of `evil`, and has logged each of `reasons`.
fn wait_evil(agent: &ApiAgent<'_>, prefixes: &[&str], reasons: &[&str]) -> Result<()> {
    let mut expected = Vec::new();
    for prefix in prefixes {
        expected.push(prefix.parse::<Ipv4Network>()?);
    }
    expected.sort();
    let mut found = Vec::new();
    let waited = wait::until("the agent leaves out what evil may not have", || {
        found = routes(agent)?;
        let log = agent.log();
        Ok(found == expected && reasons.iter().all(|reason| log.contains(reason)))
    });
    waited.map_err(|why| why.context(format!("{found:?}\n{}", agent.log())))
}

/// A running agent of the node a1, with the settings of its command line.
fn reader<'a>(server: &'a ApiServer, settings: &[&str]) -> Result<ApiAgent<'a>> {
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    let agent = ApiAgent::start_with(server, "a1", settings)?;
    agent.wait_ready(200, "ok")?;
    Ok(agent)
}

fn a_token_takes_no_service_range(server: &ApiServer) -> Result<()> {
    let agent = reader(server, &[])?;
    let evil = evil(server)?;
    evil.claims(
        "10.0.0.66",
        &format!("{EVIL_CIDR}, 10.96.0.0/16, 10.96.0.10/32"),
    )?;
    let reasons = [
        "node evil: podCIDRs: \"10.96.0.0/16\" is in the Service range 10.96.0.0/16",
        "node evil: podCIDRs: \"10.96.0.10/32\" is in the Service range",
    ];
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &reasons)?;
    drop(agent);
    clean(server)
}

fn a_token_takes_no_address_of_a_load_balancer_and_no_range_outside_of_the_cluster(
    server: &ApiServer,
) -> Result<()> {
    let agent = reader(server, &[])?;
    let evil = evil(server)?;
    let claimed = format!("{EVIL_CIDR}, 203.0.113.100/32, 198.51.100.0/24, 10.0.0.128/25");
    evil.claims("10.0.0.66", &claimed)?;
    let reasons = ["203.0.113.100/32", "198.51.100.0/24", "10.0.0.128/25"]
        .map(|it| format!("node evil: podCIDRs: \"{it}\" is not in spec.podCIDRs of the Node"));
    let reasons = reasons.each_ref().map(String::as_str);
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &reasons)?;
    drop(agent);
    clean(server)
}

fn a_token_takes_no_machine_of_its_own_realm_and_no_bastion(server: &ApiServer) -> Result<()> {
    let agent = reader(server, &[])?;
    let evil = evil(server)?;
    // A resolver and a database of the reader's realm, and a machine of the Internet.
    evil.claims("10.0.0.66, 10.0.0.2, 10.0.0.50, 198.51.100.9", EVIL_CIDR)?;
    let reasons = ["10.0.0.2", "10.0.0.50", "198.51.100.9"].map(|it| {
        format!("node evil: internalIPs: \"{it}\" is not in status.addresses of the Node")
    });
    let reasons = reasons.each_ref().map(String::as_str);
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &reasons)?;
    drop(agent);
    clean(server)
}

fn a_token_takes_no_range_of_a_node_that_has_not_joined_yet(server: &ApiServer) -> Result<()> {
    let agent = reader(server, &[])?;
    let evil = evil(server)?;
    node(server, "b1", "10.0.0.12", "10.42.12.0/24", "")?;
    evil.claims(
        "10.0.0.66, 10.0.0.12",
        &format!("{EVIL_CIDR}, 10.42.12.0/24"),
    )?;
    let reasons = [
        "node evil: podCIDRs: \"10.42.12.0/24\" is not in spec.podCIDRs of the Node",
        "node evil: internalIPs: \"10.0.0.12\" is not in status.addresses of the Node",
    ];
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &reasons)?;
    // It joins although the other claim is older.
    object(
        server,
        "b1",
        "internalIPs: [10.0.0.12], podCIDRs: [10.42.12.0/24]",
    )?;
    let prefixes = ["10.0.0.66/32", EVIL_CIDR, "10.0.0.12/32", "10.42.12.0/24"];
    wait_evil(&agent, &prefixes, &[])?;
    drop(agent);
    clean(server)
}

fn a_policy_refuses_ranges_wider_than_a_16(server: &ApiServer) -> Result<()> {
    let evil = evil(server)?;
    for wide in ["64.0.0.0/3", "10.42.0.0/15"] {
        let answer = evil.claim("10.0.0.66", wide)?;
        let why = "ValidatingAdmissionPolicy 'ipip-agent-objects' with binding 'ipip-agent-objects' denied request: a node has no pod CIDR wider than a /16";
        ensure!(
            answer.as_ref().is_err_and(|it| it.contains(why)),
            "{answer:?}"
        );
    }
    clean(server)
}

fn a_policy_limits_a_node_to_one_block_that_is_not_wider_than_a_16(
    server: &ApiServer,
) -> Result<()> {
    let evil = evil(server)?;
    let block = |cidr: &str, more: &[&str]| -> Result<String> {
        let name = cidr.replace(['.', '/'], "-");
        let spec = format!("cidr: {cidr}, node: evil");
        let create = [&["create"], more].concat();
        let answer = evil.kubectl(&create, ("IpipPodBlock", &name, &spec))?;
        Ok(answer.unwrap_or_else(|refusal| refusal))
    };
    let wide = block("10.0.0.0/8", &[])?;
    ensure!(wide.contains("a block is not wider than a /16"), "{wide}");
    let first = block("10.77.0.0/24", &[])?;
    ensure!(first.contains("created"), "{first}");
    // The API server's cache of blocks is behind for a moment.
    let why =
        "'ipip-agent-one-block' denied request: the node has the IpipPodBlock 10-77-0-0-24 already";
    let mut last = String::new();
    wait::until("a second block is refused", || {
        last = block("10.77.1.0/24", &["--dry-run=server"])?;
        Ok(last.contains(why))
    })
    .map_err(|error| error.context(last))?;
    let again = block("10.77.0.0/24", &[])?;
    ensure!(again.contains("already exists"), "{again}");
    clean(server)
}

fn the_policies_apply_in_every_namespace(server: &ApiServer) -> Result<()> {
    // As a Kustomize overlay with `namespace: net` moves the ServiceAccount and the subject of the binding.
    server.apply("{apiVersion: v1, kind: Namespace, metadata: {name: net}}")?;
    server.apply(
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: ipip-agent, namespace: net}}",
    )?;
    server.apply("{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: moved}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ipip-agent}, subjects: [{kind: ServiceAccount, name: ipip-agent, namespace: net}]}")?;
    node(server, "a1", ADDRESS, "10.42.1.0/24", "")?;
    node(server, "b1", "10.0.0.12", "10.42.12.0/24", "")?;
    let bound = ["--bound-object-kind=Node", "--bound-object-name=a1"];
    let create = ["create", "token", "ipip-agent", "--namespace=net"];
    let token = server.kubectl(&[&create[..], &bound].concat())?;
    let path = server.folder().join("moved.yaml");
    for (kind, spec) in [
        (
            "IpipNode",
            "internalIPs: [10.0.0.12], podCIDRs: [10.42.12.0/24]",
        ),
        ("IpipPodBlock", "cidr: 10.42.12.0/24, node: b1"),
    ] {
        let name = if kind == "IpipNode" {
            "b1"
        } else {
            "10-42-12-0-24"
        };
        let text = format!(
            "{{apiVersion: ipip.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}"
        );
        std::fs::write(&path, text)?;
        let path = path.display().to_string();
        let output =
            server.kubectl_as(token.trim(), &["create", "--validate=false", "-f", &path])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let why = format!("the agent of node 'a1' may not write the {kind} '{name}'");
        ensure!(!output.status.success() && text.contains(&why), "{text}");
    }
    // Without kube-controller-manager a namespace is never removed.
    server.kubectl(&["delete", "clusterrolebinding/moved"])?;
    clean(server)
}

fn with_a_kubelets_credentials_no_address_of_services_or_pods_is_taken(
    server: &ApiServer,
) -> Result<()> {
    let resolvers = server.folder().join("resolv.conf");
    std::fs::write(&resolvers, "nameserver 10.0.0.2\n")?;
    let resolvers = resolvers.display().to_string();
    let settings = [
        "--pod-cidrs",
        "10.42.0.0/16",
        "--resolver-files",
        &resolvers,
    ];
    let agent = reader(server, &settings)?;
    let evil = evil(server)?;
    let ips = ["10.0.0.66", "10.96.0.10", "10.42.200.1", "10.0.0.2"];
    set_addresses(server, "evil", &ips)?;
    evil.claims(&ips.join(", "), EVIL_CIDR)?;
    let reasons = [
        "node evil: internalIPs: \"10.96.0.10\" is in the Service range 10.96.0.0/16",
        "node evil: internalIPs: \"10.42.200.1\" is in the pod range 10.42.0.0/16",
        "internalIPs: 10.0.0.2 of node evil is also a resolver of this host",
    ];
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &reasons)?;
    drop(agent);
    std::fs::remove_file(resolvers)?;
    clean(server)
}

fn with_a_kubelets_credentials_no_range_outside_of_the_settings_is_taken(
    server: &ApiServer,
) -> Result<()> {
    let settings = [
        "--pod-cidrs",
        "10.42.0.0/16",
        "--service-cidrs",
        "10.43.0.0/16",
    ];
    let agent = reader(server, &settings)?;
    // A kubelet can choose spec.podCIDRs when it registers its Node.
    for (cidr, why) in [
        (
            "203.0.113.0/24",
            "is not in the pod ranges of the cluster (10.42.0.0/16)",
        ),
        ("10.43.7.0/24", "is in the Service range 10.43.0.0/16"),
    ] {
        node(server, "evil", "10.0.0.66", cidr, "")?;
        let evil = Evil::of(server)?;
        evil.claims("10.0.0.66", cidr)?;
        let why = format!("node evil: podCIDRs: \"{cidr}\" {why}");
        wait_evil(&agent, &["10.0.0.66/32"], &[&why])?;
        server.kubectl(&["delete", "ipn/evil", "node/evil"])?;
    }
    drop(agent);
    clean(server)
}

fn a_node_of_which_a_value_is_left_out_reports_it_itself(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "10.96.7.0/24", "")?;
    let agent = ApiAgent::start(server, "a1")?;
    let why = "podCIDRs: \"10.96.7.0/24\" is in the Service range 10.96.0.0/16; remedy: ";
    agent.wait_ready(503, why)?;
    wait::until("an Event reports it", || {
        let events = server.kubectl(&["get", "events", "-A"])?;
        Ok(events.contains("IpipLeftOut") && events.contains("is in the Service range"))
    })?;
    drop(agent);
    clean(server)
}

fn a_claim_is_used_as_soon_as_its_node_backs_it(server: &ApiServer) -> Result<()> {
    let agent = reader(server, &[])?;
    let evil = evil(server)?;
    evil.claims("10.0.0.66, 10.0.0.67", EVIL_CIDR)?;
    let why = "node evil: internalIPs: \"10.0.0.67\" is not in status.addresses of the Node";
    wait_evil(&agent, &["10.0.0.66/32", EVIL_CIDR], &[why])?;
    set_addresses(server, "evil", &["10.0.0.66", "10.0.0.67"])?;
    wait_evil(&agent, &["10.0.0.66/32", "10.0.0.67/32", EVIL_CIDR], &[])?;
    ensure!(
        agent.log().contains("no longer left out: node evil"),
        "{}",
        agent.log()
    );
    drop(agent);
    clean(server)
}
