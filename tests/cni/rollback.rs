//! An ADD that fails at any step leaves nothing, and the next one works. The faults are injected from outside:
//! names in use, full maps, pins that cannot be made, and IPAM plugins that break things.

use crate::add::address_of;
use anyhow::{Result, ensure};
use ipip_abi::{Addr, Pod, maps::MAX_PODS};
use ipip_datapath::AttachMode;
use ipip_testkit::{
    cni_node::{Call, CniNode, PLUGINS},
    host::Host,
};
use serde_json::json;
use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt};

#[test]
fn a_lock_that_cannot_be_taken_leaves_nothing() -> Result<()> {
    let (node, pod) = node()?;
    fs::write(node.folder().join("run"), "")?;
    let add = node.call("ADD", "c1", Some(&pod));
    add.run()?.failure(5, &["run/cni.lock", "runDir"])?;
    fs::remove_file(node.folder().join("run"))?;
    works(&node, &pod)
}

#[test]
fn a_missing_program_leaves_nothing() -> Result<()> {
    let (node, pod) = node()?;
    fs::remove_file(node.pins().programs().join("to_pod"))?;
    let add = node.call("ADD", "c1", Some(&pod));
    add.run()?.failure(11, &["start ipip-agent"])?;
    // Load it again, as an agent does when it starts.
    node.load()?;
    works(&node, &pod)
}

#[test]
fn a_name_that_is_taken_in_the_pod_leaves_nothing() -> Result<()> {
    let (node, pod) = node()?;
    pod.ip("link add eth0 type bridge")?;
    let add = node.call("ADD", "c1", Some(&pod));
    add.run()?.failure(103, &["eth0"])?;
    pod.ip("link delete eth0")?;
    works(&node, &pod)
}

#[test]
fn a_name_that_is_taken_on_the_host_stays_with_its_owner() -> Result<()> {
    let (node, pod) = node()?;
    let result = node.add("c1", &pod)?;
    let name = result["interfaces"][0]["name"].as_str().unwrap_or_default();
    node.del("c1")?;
    node.ip(&format!("link add {name} type bridge"))?;
    let add = node.call("ADD", "c1", Some(&pod));
    add.run()?.failure(103, &[name])?;
    ensure!(node.traces()? == [format!("link {name}")]);
    node.ip(&format!("link delete {name}"))?;
    works(&node, &pod)
}

#[test]
fn an_ipam_plugin_that_fails_dies_or_prints_garbage_leaves_nothing() -> Result<()> {
    for (script, code, named) in [
        ("exit 3", 102, "exit status: 3"),
        ("kill -9 $$", 102, "signal: 9"),
        (
            r#"echo '{"code": 117, "msg": "no more"}'; exit 1"#,
            117,
            "no more",
        ),
        ("echo nonsense", 102, "printed an invalid answer"),
        (r#"echo '{"cniVersion": "1.0.0"}'"#, 102, "none"),
        (
            r#"echo '{"ips": [{"address": "fd00::1/64"}]}'"#,
            102,
            "fd00::1",
        ),
        (
            r#"echo '{"ips": [{"address": "127.0.0.9/8"}]}'"#,
            102,
            "127.0.0.9",
        ),
    ] {
        let (node, pod) = node()?;
        let add = with_ipam(&node, &pod, script)?;
        add.run()?.failure(code, &[named])?;
        works(&node, &pod)?;
    }
    Ok(())
}

#[test]
fn a_lease_of_an_address_that_cannot_be_used_is_given_back() -> Result<()> {
    let (node, pod) = node()?;
    let lies = format!("{PLUGINS}/host-local >/dev/null; echo '{{\"ips\": []}}'");
    with_ipam(&node, &pod, &lies)?
        .run()?
        .failure(102, &["none"])?;
    works(&node, &pod)
}

#[test]
fn an_address_other_than_the_requested_one_is_given_back() -> Result<()> {
    let (node, pod) = node()?;
    // This plugin does not get the requested address.
    let add = with_ipam(
        &node,
        &pod,
        &format!("sed s/runtimeConfig/ignored/ | {PLUGINS}/host-local"),
    )?;
    let add = add.with("runtimeConfig", json!({"ips": ["10.42.7.9"]}));
    add.run()?.failure(102, &["10.42.7.9", "fake"])?;
    works(&node, &pod)
}

#[test]
fn a_program_that_cannot_be_attached_leaves_nothing() -> Result<()> {
    let pins = ["from_pod", "to_pod"].map(|program| (program.to_owned(), "tcx"));
    let marks = ["from_pod", "to_pod"].map(|program| (format!("{program}@clsact"), "clsact"));
    let has_tcx = AttachMode::Auto.is_tcx()?;
    for (pin, mode) in marks
        .into_iter()
        .chain(pins.into_iter().filter(|_| has_tcx))
    {
        let (node, pod) = node()?;
        let name = node.add("c1", &pod)?["interfaces"][0]["name"].clone();
        node.del("c1")?;
        // A folder in place of the pin.
        let pin = format!("{}@{pin}", name.as_str().unwrap_or_default());
        let pin = node.pins().links().join(pin);
        fs::create_dir(&pin)?;
        let add = node.call("ADD", "c1", Some(&pod));
        let outcome = add.with("attach", json!(mode)).run()?;
        ensure!(
            !outcome.success && outcome.printed["code"] == 101,
            "{}",
            outcome.printed
        );
        fs::remove_dir(&pin)?;
        works(&node, &pod)?;
    }
    Ok(())
}

#[test]
fn a_veth_that_disappears_during_add_leaves_nothing() -> Result<()> {
    let (node, pod) = node()?;
    let script = after_host_local(&format!("ip -n {} link delete eth0", pod.name()));
    let outcome = with_ipam(&node, &pod, &script)?.run()?;
    outcome.failure(outcome.printed["code"].as_u64().unwrap_or_default(), &[])?;
    works(&node, &pod)
}

#[test]
fn a_pod_whose_last_step_fails_leaves_nothing() -> Result<()> {
    let (node, pod) = node()?;
    // The pod already has the address.
    let script = after_host_local(&format!(
        "ip -n {} address add \"$ADDRESS\"/32 dev eth0",
        pod.name()
    ));
    with_ipam(&node, &pod, &script)?
        .run()?
        .failure(100, &["add address"])?;
    works(&node, &pod)
}

#[test]
fn a_full_map_leaves_nothing_and_loses_no_entry() -> Result<()> {
    let (node, pod) = node()?;
    let mut maps = node.maps()?;
    let address = |number: u32| Addr::from(Ipv4Addr::from_bits(0x0b00_0000 + number));
    let entry = Pod {
        ifindex: 1,
        ..Pod::default()
    };
    for number in 0..MAX_PODS {
        maps.pods.insert(address(number), entry, 0)?;
    }
    let add = node.call("ADD", "c1", Some(&pod));
    add.run()?.failure(101, &["50000", "in use", "GC"])?;
    let status = node.call("STATUS", "", None);
    let status = status.with("cniVersion", json!("1.1.0"));
    status.run()?.failure(50, &["50000"])?;
    ensure!(maps.pods.keys().count() == MAX_PODS as usize);
    for number in 0..MAX_PODS {
        maps.pods.remove(&address(number))?;
    }
    works(&node, &pod)
}

#[test]
fn an_address_of_a_running_pod_is_refused_and_stays_with_it() -> Result<()> {
    let (node, pod) = node()?;
    let other = node.pod("other")?;
    let first = node.add("c0", &other)?;
    // IPAM has lost the lease.
    fs::remove_dir_all(node.leases())?;
    let wanted = address_of(&first)?;
    let add = node.call("ADD", "c1", Some(&pod));
    let add = add.with("runtimeConfig", json!({"ips": [wanted]}));
    add.run()?
        .failure(103, &[&wanted.to_string(), "ipam.dataDir"])?;
    let check = node
        .call("CHECK", "c0", Some(&other))
        .with("prevResult", first);
    // Only the lost lease is missing.
    check.run()?.failure(104, &["host-local"])?;
    node.del("c0")?;
    works(&node, &pod)
}

#[test]
fn add_twice_is_refused_and_the_first_stays_intact() -> Result<()> {
    let (node, pod) = node()?;
    let result = node.add("c1", &pod)?;
    let before = node.traces()?;
    let again = node.call("ADD", "c1", Some(&pod));
    again
        .run()?
        .failure(103, &["added before", "call DEL first"])?;
    ensure!(node.traces()? == before);
    let check = node.call("CHECK", "c1", Some(&pod));
    check.with("prevResult", result).run()?.success()?;
    node.del("c1")?;
    works(&node, &pod)
}

fn node() -> Result<(CniNode, Host)> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    Ok((node, pod))
}

/// Expects that nothing is left, and that an ADD works.
fn works(node: &CniNode, pod: &Host) -> Result<()> {
    node.expect_no_trace()?;
    let result = node.add("c1", pod)?;
    let check = node.call("CHECK", "c1", Some(pod));
    check.with("prevResult", result).run()?.success()?;
    node.del("c1")?;
    node.expect_no_trace()
}

/// Prepares an ADD with an IPAM plugin `fake`. It runs `script` for ADD, and host-local for other verbs.
fn with_ipam<'a>(node: &'a CniNode, pod: &Host, script: &str) -> Result<Call<'a>> {
    let folder = node.folder().join("plugins");
    fs::create_dir_all(&folder)?;
    let path = folder.join("fake");
    let text =
        format!("#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exec {PLUGINS}/host-local\n{script}\n");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let mut call = node.call("ADD", "c1", Some(pod));
    call.conf["ipam"]["type"] = json!("fake");
    // CNI_PATH contains `fake` alone; the script calls host-local by its full path.
    Ok(call.env("CNI_PATH", &folder.display().to_string()))
}

/// A script that lets host-local allocate an address, then does `harm`, then prints host-local's result.
fn after_host_local(harm: &str) -> String {
    format!(
        "HOST_LOCAL=$({PLUGINS}/host-local) || exit 1\n\
         ADDRESS=$(echo \"$HOST_LOCAL\" | tr -d ' \\n' | sed 's/.*\"address\":\"\\([0-9.]*\\).*/\\1/')\n\
         sleep 0.2\n{harm}\necho \"$HOST_LOCAL\""
    )
}
