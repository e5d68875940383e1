//! The rights of an agent's token.

use crate::agent::field;
use anyhow::{Result, ensure};
use ipip_lab::api_server::ApiServer;
use ipip_testkit::{harness::Test, shell, tests};

pub const TESTS: &[Test<ApiServer>] = tests![
    the_token_of_a_node_writes_that_nodes_objects_and_no_others,
    the_token_of_a_node_writes_that_nodes_claims_and_no_others,
    the_token_of_a_node_claims_blocks_for_that_node_and_releases_no_others,
    the_token_of_a_node_changes_nothing_of_its_node_but_one_condition,
    a_token_that_names_no_node_writes_nothing,
];

const CONDITION: &str = r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"IpipReady","message":"m"}]}}"#;

fn node(server: &ApiServer, name: &str) -> Result<String> {
    server.apply(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}"
    ))?;
    server.kubectl(&["get", "node", name, "-o", "jsonpath={.metadata.uid}"])
}

fn object(server: &ApiServer, name: &str, owner: &str, uid: &str) -> Result<String> {
    let text = format!(
        r#"{{"apiVersion":"ipip.dev/v1alpha1","kind":"IpipNode","metadata":{{"name":"{name}","ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"{owner}","uid":"{uid}"}}]}},"spec":{{"internalIPs":["10.9.0.1"],"podCIDRs":["10.99.1.0/24"]}}}}"#
    );
    let path = server.folder().join("object.json");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn allowed(server: &ApiServer, token: &str, arguments: &[&str]) -> Result<()> {
    let output = server.kubectl_as(token, arguments);
    shell::printed(&arguments.join(" "), Ok(output?)).map(drop)
}

fn forbidden(server: &ApiServer, token: &str, arguments: &[&str], why: &str) -> Result<()> {
    let output = server.kubectl_as(token, arguments)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{arguments:?} was allowed");
    ensure!(text.contains(why), "{arguments:?}: {text}");
    Ok(())
}

fn the_token_of_a_node_writes_that_nodes_objects_and_no_others(server: &ApiServer) -> Result<()> {
    let (a, b) = (node(server, "r-a")?, node(server, "r-b")?);
    let token = server.agent_token("r-a")?;
    let apply = |path: &str| -> Vec<String> {
        let words = ["apply", "--server-side", "--validate=false", "-f", path];
        words.map(str::to_owned).to_vec()
    };
    let words = |list: &[String]| -> Vec<String> { list.to_vec() };
    let others = object(server, "r-b", "r-b", &b)?;
    let list = words(&apply(&others));
    let list: Vec<&str> = list.iter().map(String::as_str).collect();
    let not_own = "may not write the IpipNode 'r-b'";
    forbidden(server, &token, &list, not_own)?;
    // Once more, now that the object exists.
    server.kubectl(&list)?;
    let steal = r#"{"spec":{"encapsulation":"direct"}}"#;
    forbidden(
        server,
        &token,
        &["patch", "ipn", "r-b", "--type=merge", "-p", steal],
        not_own,
    )?;
    let status = r#"{"status":{"podMTU":576}}"#;
    let patch = [
        "patch",
        "ipn",
        "r-b",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    forbidden(server, &token, &patch, not_own)?;
    let all = ["delete", "--raw", "/apis/ipip.dev/v1alpha1/ipipnodes"];
    forbidden(server, &token, &all, "cannot deletecollection")?;

    // Its own object, but with another node as its owner.
    object(server, "r-a", "r-b", &b)?;
    forbidden(server, &token, &list, "owned by its Node alone")?;
    object(server, "r-a", "r-a", &a)?;
    allowed(server, &token, &list)?;
    let patch = [
        "patch",
        "ipn",
        "r-a",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    allowed(server, &token, &patch)?;
    let merge = |body| ["patch", "ipn", "r-a", "--type=merge", "-p", body];
    let held = r#"{"metadata":{"finalizers":["example.org/held"]}}"#;
    forbidden(server, &token, &merge(held), "has no finalizers")?;
    let blocks = format!(
        r#"{{"metadata":{{"ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"r-a","uid":"{a}","blockOwnerDeletion":true}}]}}}}"#
    );
    forbidden(
        server,
        &token,
        &merge(&blocks),
        "does not block the deletion",
    )?;
    // An agent never deletes it; the garbage collector does, together with the Node.
    let delete = ["delete", "ipn", "r-a"];
    forbidden(server, &token, &delete, "cannot delete resource")?;
    server
        .kubectl(&["delete", "ipn/r-a", "ipn/r-b", "node/r-a", "node/r-b"])
        .map(drop)
}

fn claim(server: &ApiServer, name: &str, node: &str, more: &str) -> Result<String> {
    let text = format!(
        r#"{{"apiVersion":"ipip.dev/v1alpha1","kind":"IpipClaim","metadata":{{"name":"{name}"{more}}},"spec":{{"node":"{node}","internalIPs":["10.9.0.1"]}}}}"#
    );
    let path = server.folder().join("claim.json");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn the_token_of_a_node_writes_that_nodes_claims_and_no_others(server: &ApiServer) -> Result<()> {
    let uid = node(server, "r-a")?;
    node(server, "r-b")?;
    let token = server.agent_token("r-a")?;
    let owner = |more: &str| {
        format!(
            r#","ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"r-a","uid":"{uid}"{more}}}]"#
        )
    };
    let path = claim(server, "r-b.0", "r-b", &owner(""))?;
    let create = ["create", "--validate=false", "-f", &path];
    let not_own = "may not write the IpipClaim 'r-b.0' of node 'r-b'";
    forbidden(server, &token, &create, not_own)?;
    server.kubectl(&create)?;
    forbidden(server, &token, &["delete", "ipc", "r-b.0"], not_own)?;
    let all = ["delete", "--raw", "/apis/ipip.dev/v1alpha1/ipipclaims"];
    forbidden(server, &token, &all, "cannot deletecollection")?;
    for (more, why) in [
        (String::new(), "an IpipClaim is owned by its Node alone"),
        (
            owner(r#","blockOwnerDeletion":true"#),
            "does not block the deletion",
        ),
        (
            format!(r#"{},"finalizers":["example.org/held"]"#, owner("")),
            "has no finalizers",
        ),
    ] {
        claim(server, "r-a.0", "r-a", &more)?;
        forbidden(server, &token, &create, why)?;
    }
    // An age is the API server's.
    let old = format!(
        r#"{},"creationTimestamp":"2020-01-01T00:00:00Z""#,
        owner("")
    );
    claim(server, "r-a.0", "r-a", &old)?;
    allowed(server, &token, &create)?;
    let creation = || field(server, "ipc", "r-a.0", "{.metadata.creationTimestamp}");
    let created = creation()?;
    ensure!(!created.starts_with("2020"), "{created}");
    let patch = ["patch", "ipc", "r-a.0", "--type=merge", "-p"];
    for (body, why) in [
        (
            r#"{"spec":{"internalIPs":["10.9.0.2"]}}"#,
            "a claim is immutable",
        ),
        (
            r#"{"metadata":{"finalizers":["example.org/held"]}}"#,
            "has no finalizers",
        ),
    ] {
        forbidden(server, &token, &[&patch[..], &[body]].concat(), why)?;
    }
    let older = r#"{"metadata":{"creationTimestamp":"2020-01-01T00:00:00Z"}}"#;
    let _ = server.kubectl_as(&token, &[&patch[..], &[older]].concat())?;
    let now = creation()?;
    ensure!(now == created, "{now}");
    allowed(server, &token, &["delete", "ipc", "r-a.0"])?;
    server
        .kubectl(&["delete", "ipc/r-b.0", "node/r-a", "node/r-b"])
        .map(drop)
}

fn block(server: &ApiServer, cidr: &str, node: &str, owner: &str) -> Result<String> {
    let name = cidr.replace(['.', '/'], "-");
    let owner = match owner {
        "" => String::new(),
        name => format!(
            r#","ownerReferences":[{{"apiVersion":"v1","kind":"Node","name":"{name}","uid":"1"}}]"#
        ),
    };
    let text = format!(
        r#"{{"apiVersion":"ipip.dev/v1alpha1","kind":"IpipPodBlock","metadata":{{"name":"{name}"{owner}}},"spec":{{"cidr":"{cidr}","node":"{node}"}}}}"#
    );
    let path = server.folder().join("block.json");
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn the_token_of_a_node_claims_blocks_for_that_node_and_releases_no_others(
    server: &ApiServer,
) -> Result<()> {
    node(server, "r-a")?;
    node(server, "r-b")?;
    let token = server.agent_token("r-a")?;
    let path = block(server, "10.99.2.0/24", "r-b", "r-b")?;
    let create = ["create", "--validate=false", "-f", &path];
    let not_own = "may not write the IpipPodBlock '10-99-2-0-24' of node 'r-b'";
    forbidden(server, &token, &create, not_own)?;
    // Once more, now that the block exists.
    server.kubectl(&create)?;
    let steal = r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"r-a","uid":"1"}]}}"#;
    let patch = |name, body| ["patch", "ipb", name, "--type=merge", "-p", body];
    forbidden(server, &token, &patch("10-99-2-0-24", steal), not_own)?;
    forbidden(server, &token, &["delete", "ipb", "10-99-2-0-24"], not_own)?;
    let all = ["delete", "--raw", "/apis/ipip.dev/v1alpha1/ipippodblocks"];
    forbidden(server, &token, &all, "cannot deletecollection")?;
    let status = server.kubectl_as(&token, &create)?;
    ensure!(!status.status.success(), "one block was created twice");

    // Blocks of its own node, but with no owner or with another one.
    for owner in ["", "r-b"] {
        block(server, "10.99.1.0/24", "r-a", owner)?;
        forbidden(server, &token, &create, "owned by its Node alone")?;
    }
    block(server, "10.99.1.0/24", "r-a", "r-a")?;
    allowed(server, &token, &create)?;
    let give = r#"{"spec":{"node":"r-b"}}"#;
    forbidden(
        server,
        &token,
        &patch("10-99-1-0-24", give),
        "a block is immutable",
    )?;
    let orphan = r#"{"metadata":{"ownerReferences":null}}"#;
    forbidden(
        server,
        &token,
        &patch("10-99-1-0-24", orphan),
        "owned by its Node alone",
    )?;
    allowed(server, &token, &["delete", "ipb", "10-99-1-0-24"])?;

    let unbound = server.kubectl(&["create", "token", "ipip-agent", "--namespace=kube-system"])?;
    forbidden(
        server,
        unbound.trim(),
        &create,
        "the agent of node '' may not write",
    )?;
    server
        .kubectl(&["delete", "ipb/10-99-2-0-24", "node/r-a", "node/r-b"])
        .map(drop)
}

fn the_token_of_a_node_changes_nothing_of_its_node_but_one_condition(
    server: &ApiServer,
) -> Result<()> {
    node(server, "r-a")?;
    node(server, "r-b")?;
    let token = server.agent_token("r-a")?;
    let patch = |name, body| {
        [
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=strategic",
            "-p",
            body,
        ]
    };
    allowed(server, &token, &patch("r-a", CONDITION))?;
    forbidden(
        server,
        &token,
        &patch("r-b", CONDITION),
        "may not write the Node 'r-b'",
    )?;
    let nothing_but = "nothing of its Node but the condition";
    for body in [
        r#"{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.99"}]}}"#,
        r#"{"status":{"capacity":{"cpu":"99"}}}"#,
        r#"{"status":{"conditions":[{"type":"Ready","status":"True"},{"type":"NetworkUnavailable","status":"False"}]}}"#,
        r#"{"metadata":{"annotations":{"ipip.dev/public-endpoint":"203.0.113.9"}},"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}"#,
        r#"{"metadata":{"labels":{"ipip.dev/realm":"x"}},"status":{"conditions":[{"type":"NetworkUnavailable","status":"True"}]}}"#,
    ] {
        forbidden(server, &token, &patch("r-a", body), nothing_but)?;
    }
    let label = ["label", "node", "r-a", "ipip.dev/realm=x"];
    forbidden(server, &token, &label, "cannot patch resource \"nodes\"")?;
    server
        .kubectl(&["delete", "node/r-a", "node/r-b"])
        .map(drop)
}

fn a_token_that_names_no_node_writes_nothing(server: &ApiServer) -> Result<()> {
    node(server, "r-a")?;
    let token = server.kubectl(&["create", "token", "ipip-agent", "--namespace=kube-system"])?;
    let patch = [
        "patch",
        "node",
        "r-a",
        "--subresource=status",
        "--type=strategic",
        "-p",
        CONDITION,
    ];
    forbidden(
        server,
        token.trim(),
        &patch,
        "the agent of node '' may not write",
    )?;
    server.kubectl(&["delete", "node/r-a"]).map(drop)
}
