//! The schemas of the kinds of this project.

use anyhow::{Result, ensure};
use ipip_lab::api_server::ApiServer;
use ipip_testkit::{harness::Test, tests};

pub const TESTS: &[Test<ApiServer>] = tests![
    a_value_that_is_not_an_ipv4_address_or_network_is_rejected_with_a_reason,
    an_object_changes_in_place_and_a_claim_never,
    an_object_holds_64_internal_ips,
    a_block_has_the_name_of_its_range_and_never_changes,
];

fn object(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {{name: {name}}}, spec: {spec}}}"
    )
}

fn refusal(server: &ApiServer, manifest: &str) -> Result<String> {
    match server.apply(manifest) {
        Ok(()) => anyhow::bail!("accepted: {manifest}"),
        Err(error) => Ok(format!("{error:?}")),
    }
}

fn a_value_that_is_not_an_ipv4_address_or_network_is_rejected_with_a_reason(
    server: &ApiServer,
) -> Result<()> {
    for (spec, reason) in [
        (
            "{internalIPs: [10.0.0], podCIDRs: [10.42.1.0/24]}",
            "internalIPs",
        ),
        (
            "{internalIPs: [127.0.0.1], podCIDRs: [10.42.1.0/24]}",
            "an IPv4 address that can be routed",
        ),
        (
            "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.7/24]}",
            "without host bits",
        ),
        ("{internalIPs: [10.0.0.1], podCIDRs: []}", "podCIDRs"),
        (
            "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], publicEndpoint: '2001:db8::1'}",
            "an IPv4 address",
        ),
        (
            "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], encapsulation: gre}",
            "encapsulation",
        ),
        (
            "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], realm: 'a b'}",
            "realm",
        ),
        (
            "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], probeKey: AQEBAQ==}",
            "probeKey",
        ),
    ] {
        let text = refusal(server, &object("s1", spec))?;
        ensure!(text.contains(reason), "{spec}: {text}");
    }
    Ok(())
}

fn an_object_changes_in_place_and_a_claim_never(server: &ApiServer) -> Result<()> {
    let spec =
        "internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.1, realm: a";
    let claim = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: ipip.dev/v1alpha1, kind: IpipClaim, metadata: {{name: {name}}}, spec: {{node: s2, {spec}}}}}"
        )
    };
    for name in ["s2", "s2.10", "s2.a", "s3.0"] {
        let text = refusal(server, &claim(name, spec))?;
        ensure!(
            text.contains("the name of its node, a dot and a digit"),
            "{name}: {text}"
        );
    }
    server.apply(&object("s2", &format!("{{{spec}}}")))?;
    server.apply(&claim("s2.0", spec))?;
    for (from, to) in [
        ("10.0.0.1]", "10.0.0.1, 10.0.0.2]"),
        ("10.0.0.1", ""),
        ("10.42.1.0", "10.42.2.0"),
        ("publicEndpoint: 203.0.113.1, ", ""),
        ("realm: a", "realm: b"),
    ] {
        let changed = spec.replace(from, to);
        server.apply(&object("s2", &format!("{{{changed}}}")))?;
        let text = refusal(server, &claim("s2.0", &changed))?;
        ensure!(text.contains("a claim is immutable"), "{changed}: {text}");
    }
    server.kubectl(&["delete", "ipn/s2", "ipc/s2.0"]).map(drop)
}

fn a_block_has_the_name_of_its_range_and_never_changes(server: &ApiServer) -> Result<()> {
    let block = |name: &str, spec: &str| {
        format!(
            "{{apiVersion: ipip.dev/v1alpha1, kind: IpipPodBlock, metadata: {{name: {name}}}, spec: {spec}}}"
        )
    };
    for (name, spec, reason) in [
        (
            "10-99-0-0-24",
            "{cidr: 10.99.1.0/24, node: a}",
            "follows from its cidr",
        ),
        (
            "ten",
            "{cidr: 10.99.1.0/24, node: a}",
            "follows from its cidr",
        ),
        (
            "10-99-1-1-24",
            "{cidr: 10.99.1.1/24, node: a}",
            "without host bits",
        ),
        (
            "10-99-1-0-24",
            "{cidr: 10.99.1.0/24, node: ''}",
            "spec.node",
        ),
        ("10-99-1-0-24", "{cidr: 10.99.1.0/24}", "spec.node"),
    ] {
        let text = refusal(server, &block(name, spec))?;
        ensure!(text.contains(reason), "{name} {spec}: {text}");
    }
    server.apply(&block("10-99-1-0-24", "{cidr: 10.99.1.0/24, node: a}"))?;
    let text = refusal(
        server,
        &block("10-99-1-0-24", "{cidr: 10.99.1.0/24, node: b}"),
    )?;
    ensure!(text.contains("immutable"), "{text}");
    server.kubectl(&["delete", "ipb", "10-99-1-0-24"]).map(drop)
}

fn an_object_holds_64_internal_ips(server: &ApiServer) -> Result<()> {
    let spec = |count: u8| {
        let ips: Vec<String> = (1..=count).map(|n| format!("10.0.0.{n}")).collect();
        let ips = ips.join(", ");
        format!("{{internalIPs: [{ips}], podCIDRs: [10.42.1.0/24]}}")
    };
    let text = refusal(server, &object("s3", &spec(65)))?;
    ensure!(text.contains("internalIPs"), "{text}");
    server.apply(&object("s3", &spec(64)))?;
    server.kubectl(&["delete", "ipn", "s3"]).map(drop)
}
