//! GC removes exactly the pods that are not in the list.

use crate::del::{lose, remove_files};
use anyhow::{Context, Result, ensure};
use ipip_testkit::cni_node::{Call, CniNode};
use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

#[test]
fn gc_without_a_list_deletes_nothing() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    node.add("c1", &pod)?;
    let before = node.traces()?;
    let gc = node.call("GC", "", None).with("cniVersion", json!("1.1.0"));
    gc.run()?
        .failure(7, &["valid-attachments", "nothing was removed"])?;
    ensure!(node.traces()? == before && before.len() == 5, "{before:?}");
    Ok(())
}

#[test]
fn gc_deletes_pods_that_are_not_in_the_list_and_keeps_those_that_are() -> Result<()> {
    let node = CniNode::ready()?;
    let pods = ["keep", "stale", "lost", "dead"].map(|name| node.pod(name));
    let [keep, stale, lost, dead] = pods;
    let (keep, stale, lost, dead) = (keep?, stale?, lost?, dead?);
    let kept = node.add("keep", &keep)?;
    let before = node.traces()?;
    node.add("stale", &stale)?;
    node.add("lost", &lost)?;
    let name = node.add("dead", &dead)?["interfaces"][0]["name"].clone();
    lose(&node, lost)?;
    // `lost` still has its map entry, pins and lease; `dead` only its map entry and lease.
    remove_files(&node.pins().links(), name.as_str().context("no name")?)?;
    lose(&node, dead)?;
    // An empty lease: a host-local that is killed while it writes leaves one.
    fs::write(node.leases().join("10.42.200.1"), "")?;
    gc(&node, json!([{"containerID": "keep", "ifname": "eth0"}]))
        .run()?
        .success()?;
    ensure!(node.traces()? == before, "{:?}", node.traces()?);
    let check = node.call("CHECK", "keep", Some(&keep));
    check.with("prevResult", kept).run()?.success()?;
    gc(&node, json!([])).run()?.success()?;
    node.expect_no_trace()
}

#[test]
fn gc_of_one_network_leaves_other_networks_and_foreign_links_alone() -> Result<()> {
    let node = CniNode::ready()?;
    let (ours, theirs) = (node.pod("ours")?, node.pod("theirs")?);
    node.add("ours", &ours)?;
    let mut add = node.call("ADD", "theirs", Some(&theirs));
    add.conf["name"] = json!("other");
    // Two networks of a node must not use the same addresses.
    add.conf["ipam"]["ranges"] = json!([[{"subnet": "10.43.0.0/16"}]]);
    let kept = add.run()?.success()?;
    let name = kept["interfaces"][0]["name"].as_str().context("no name")?;
    node.ip("link add pod0123456789ab type bridge")?;
    gc(&node, json!([])).run()?.success()?;
    let traces = node.traces()?;
    let links: Vec<_> = traces.iter().filter(|it| it.starts_with("link")).collect();
    ensure!(
        links.len() == 2 && traces.contains(&format!("link {name}")),
        "{traces:?}"
    );
    let mut check = node.call("CHECK", "theirs", Some(&theirs));
    check.conf = add.conf.clone();
    check.with("prevResult", kept).run()?.success()?;
    Ok(())
}

#[test]
fn gc_finds_the_link_of_an_add_that_was_killed_before_it_set_the_alias() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let name = result["interfaces"][0]["name"]
        .as_str()
        .context("no name")?;
    let shown = node.ip(&format!("link show {name}"))?;
    ensure!(shown.contains("alias ipip ipip c1 eth0"), "{shown}");
    let mut command = Command::new("ip");
    command.args(["link", "set", name, "alias", ""]);
    node.output(&mut command)?;
    ensure!(!node.ip(&format!("link show {name}"))?.contains("alias"));
    gc(&node, json!([])).run()?.success()?;
    node.expect_no_trace()
}

#[test]
fn gc_without_a_datapath_gives_addresses_back() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    node.add("c1", &pod)?;
    node.enter(|| ipip_datapath::remove(node.pins()))??;
    gc(&node, json!([])).run()?.success()?;
    node.expect_no_trace()
}

/// An IPAM plugin without GC learns of a stale pod by DEL alone.
#[test]
fn gc_gives_addresses_of_any_ipam_plugin_back_even_if_a_pin_stays() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let called = node.folder().join("called");
    let script = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in\n\
         VERSION) echo '{{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"1.0.0\"]}}' ;;\n\
         ADD) echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.42.7.7/32\"}}]}}' ;;\n\
         *) echo $CNI_COMMAND $CNI_CONTAINERID >> {} ;;\nesac\n",
        called.display()
    );
    let plugin = node.folder().join("other");
    fs::write(&plugin, script)?;
    fs::set_permissions(&plugin, Permissions::from_mode(0o755))?;
    let folder = node.folder().display().to_string();
    let ipam = json!({"type": "other"});
    let add = node
        .call("ADD", "stale", Some(&pod))
        .with("ipam", ipam.clone());
    let result = add.env("CNI_PATH", &folder).run()?.success()?;
    let name = result["interfaces"][0]["name"]
        .as_str()
        .context("no name")?;
    // A folder in place of a pin cannot be removed as a file.
    for suffix in ["", "@clsact"] {
        let pin = node.pins().links().join(format!("{name}@to_pod{suffix}"));
        if !pin.exists() {
            fs::create_dir(pin)?;
        }
    }
    let gc = gc(&node, json!([])).with("ipam", ipam);
    let outcome = gc.env("CNI_PATH", &folder).run()?;
    ensure!(!outcome.success, "the pin that stays is no error");
    let called = fs::read_to_string(called)?;
    ensure!(called.contains("DEL stale"), "{called}");
    Ok(())
}

/// Prepares a GC with this list of valid attachments.
pub fn gc(node: &CniNode, valid: Value) -> Call<'_> {
    let call = node.call("GC", "", None);
    call.with("cniVersion", json!("1.1.0"))
        .with("cni.dev/valid-attachments", valid)
}
