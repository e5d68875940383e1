//! The schema of IpipNode.

use anyhow::{Result, ensure};
use ipip_lab::api_server::ApiServer;
use ipip_testkit::{harness::Test, tests};

pub const TESTS: &[Test<ApiServer>] = tests![
    a_value_that_is_not_an_ipv4_address_or_network_is_rejected_with_a_reason,
    only_the_encapsulation_of_an_object_can_change,
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
    ] {
        let text = refusal(server, &object("s1", spec))?;
        ensure!(text.contains(reason), "{spec}: {text}");
    }
    Ok(())
}

fn only_the_encapsulation_of_an_object_can_change(server: &ApiServer) -> Result<()> {
    let spec = "{internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.1, realm: a}";
    server.apply(&object("s2", spec))?;
    for (from, to) in [
        ("10.0.0.1]", "10.0.0.2]"),
        ("10.42.1.0", "10.42.2.0"),
        ("publicEndpoint: 203.0.113.1, ", ""),
        ("203.0.113.1", "203.0.113.2"),
        ("realm: a", "realm: b"),
    ] {
        let text = refusal(server, &object("s2", &spec.replace(from, to)))?;
        ensure!(text.contains("immutable"), "{from} -> {to}: {text}");
    }
    server.apply(&object(
        "s2",
        &spec.replace("realm: a", "realm: a, encapsulation: udp"),
    ))?;
    server.kubectl(&["delete", "ipn", "s2"]).map(drop)
}
