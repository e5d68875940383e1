//! GC removes what is not in the list, and only that.

use crate::del::{lose, remove_files};
use anyhow::{Context, Result, ensure};
use ipip_testkit::cni_node::{Call, CniNode};
use serde_json::{Value, json};
use std::{fs, process::Command};

#[test]
fn gc_without_a_list_deletes_nothing() -> Result<()> {
    let machine = CniNode::ready()?;
    let pod = machine.pod("p")?;
    machine.add("c1", &pod)?;
    let before = machine.traces()?;
    let gc = machine
        .call("GC", "", None)
        .with("cniVersion", json!("1.1.0"));
    gc.run()?
        .failure(7, &["valid-attachments", "removed none"])?;
    ensure!(
        machine.traces()? == before && before.len() == 5,
        "{before:?}"
    );
    Ok(())
}

#[test]
fn gc_deletes_what_is_not_in_the_list_and_keeps_what_is() -> Result<()> {
    let machine = CniNode::ready()?;
    let pods = ["keep", "stale", "lost", "dead"].map(|name| machine.pod(name));
    let [keep, stale, lost, dead] = pods;
    let (keep, stale, lost, dead) = (keep?, stale?, lost?, dead?);
    let kept = machine.add("keep", &keep)?;
    let before = machine.traces()?;
    machine.add("stale", &stale)?;
    machine.add("lost", &lost)?;
    let name = machine.add("dead", &dead)?["interfaces"][0]["name"].clone();
    lose(&machine, lost)?;
    // Of the one entry, pins and lease are left, of the other only entry and lease.
    remove_files(&machine.pins().links(), name.as_str().context("no name")?)?;
    lose(&machine, dead)?;
    // A lease that a killed host-local left half written.
    fs::write(machine.leases().join("10.42.200.1"), "")?;
    gc(&machine, json!([{"containerID": "keep", "ifname": "eth0"}]))
        .run()?
        .success()?;
    ensure!(machine.traces()? == before, "{:?}", machine.traces()?);
    let check = machine.call("CHECK", "keep", Some(&keep));
    check.with("prevResult", kept).run()?.success()?;
    gc(&machine, json!([])).run()?.success()?;
    machine.expect_no_trace()
}

#[test]
fn gc_of_one_network_leaves_others_and_strangers_alone() -> Result<()> {
    let machine = CniNode::ready()?;
    let (ours, theirs) = (machine.pod("ours")?, machine.pod("theirs")?);
    machine.add("ours", &ours)?;
    let mut add = machine.call("ADD", "theirs", Some(&theirs));
    add.conf["name"] = json!("other");
    // Two networks of a node must not give out the same addresses.
    add.conf["ipam"]["ranges"] = json!([[{"subnet": "10.43.0.0/16"}]]);
    let kept = add.run()?.success()?;
    let name = kept["interfaces"][0]["name"].as_str().context("no name")?;
    machine.ip("link add pod0123456789ab type bridge")?;
    gc(&machine, json!([])).run()?.success()?;
    let traces = machine.traces()?;
    let links: Vec<_> = traces.iter().filter(|it| it.starts_with("link")).collect();
    ensure!(
        links.len() == 2 && traces.contains(&format!("link {name}")),
        "{traces:?}"
    );
    let mut check = machine.call("CHECK", "theirs", Some(&theirs));
    check.conf = add.conf.clone();
    check.with("prevResult", kept).run()?.success()?;
    Ok(())
}

#[test]
fn gc_finds_the_link_of_an_add_that_was_killed_before_it_signed_it() -> Result<()> {
    let machine = CniNode::ready()?;
    let pod = machine.pod("p")?;
    let result = machine.add("c1", &pod)?;
    let name = result["interfaces"][0]["name"]
        .as_str()
        .context("no name")?;
    let signed = machine.ip(&format!("link show {name}"))?;
    ensure!(signed.contains("alias ipip ipip c1 eth0"), "{signed}");
    let mut command = Command::new("ip");
    command.args(["link", "set", name, "alias", ""]);
    machine.output(&mut command)?;
    ensure!(!machine.ip(&format!("link show {name}"))?.contains("alias"));
    gc(&machine, json!([])).run()?.success()?;
    machine.expect_no_trace()
}

#[test]
fn gc_without_a_datapath_gives_addresses_back() -> Result<()> {
    let machine = CniNode::ready()?;
    let pod = machine.pod("p")?;
    machine.add("c1", &pod)?;
    machine.enter(|| ipip_datapath::remove(machine.pins()))??;
    gc(&machine, json!([])).run()?.success()?;
    machine.expect_no_trace()
}

/// A GC with this list.
pub fn gc(machine: &CniNode, valid: Value) -> Call<'_> {
    let call = machine.call("GC", "", None);
    call.with("cniVersion", json!("1.1.0"))
        .with("cni.dev/valid-attachments", valid)
}
