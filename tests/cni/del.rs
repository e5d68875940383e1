//! DEL of pods that are incomplete.

use anyhow::{Context, Result, ensure};
use ipip_netlink::{NetNs, Netlink};
use ipip_testkit::{cni_node::CniNode, host::Host, shell, wait};
use serde_json::json;
use std::fs;

#[test]
fn del_twice_the_second_without_netns_and_prev_result_as_containerd_does() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let del = node.call("DEL", "c1", Some(&pod));
    del.with("prevResult", result).run()?.success()?;
    node.expect_no_trace()?;
    node.del("c1")
}

#[test]
fn del_of_a_container_that_never_existed() -> Result<()> {
    let node = CniNode::ready()?;
    node.del("c1")
}

#[test]
fn del_after_the_netns_is_gone() -> Result<()> {
    let node = CniNode::ready()?;
    for (id, has_result) in [("c1", true), ("c2", false)] {
        let pod = node.pod(id)?;
        let result = node.add(id, &pod)?;
        let mut del = node.call("DEL", id, Some(&pod));
        lose(&node, pod)?;
        if has_result {
            del = del.with("prevResult", result);
        }
        del.run()?.success()?;
        node.expect_no_trace()?;
    }
    Ok(())
}

#[test]
fn del_after_the_veth_is_gone() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    node.add("c1", &pod)?;
    pod.ip("link delete eth0")?;
    node.del("c1")?;
    node.expect_no_trace()
}

#[test]
fn del_with_an_unreadable_or_wrong_prev_result() -> Result<()> {
    let node = CniNode::ready()?;
    let other = node.pod("other")?;
    let spared = node.add("c0", &other)?;
    for previous in [json!("garbage"), json!({"cniVersion": "9"}), spared] {
        let pod = node.pod("p")?;
        node.add("c1", &pod)?;
        let del = node.call("DEL", "c1", Some(&pod));
        del.with("prevResult", previous).run()?.success()?;
        shell::run(&format!("ip netns delete {}", pod.name()))?;
        ensure!(node.traces()?.len() == 5, "{:?}", node.traces()?);
    }
    Ok(())
}

#[test]
fn del_removes_the_rest_of_a_pod_of_which_parts_are_missing() -> Result<()> {
    let node = CniNode::ready()?;
    let break_it: [fn(&CniNode, Host) -> Result<()>; 4] = [
        |node, _| {
            let mut maps = node.maps()?;
            let keys: Vec<_> = maps.pods.keys().collect::<Result<_, _>>()?;
            keys.iter().try_for_each(|key| Ok(maps.pods.remove(key)?))
        },
        |node, _| remove_files(&node.pins().links(), "pod"),
        |node, _| remove_files(&node.leases(), "10."),
        |node, pod| {
            lose(node, pod)?;
            remove_files(&node.leases(), "10.")
        },
    ];
    for (number, break_it) in break_it.into_iter().enumerate() {
        let id = format!("c{number}");
        let pod = node.pod(&id)?;
        node.add(&id, &pod)?;
        break_it(&node, pod)?;
        node.del(&id)?;
        node.expect_no_trace()?;
    }
    Ok(())
}

#[test]
fn del_without_a_datapath_gives_the_address_back() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    node.add("c1", &pod)?;
    node.enter(|| ipip_datapath::remove(node.pins()))??;
    node.del("c1")?;
    node.expect_no_trace()
}

#[test]
fn del_collects_every_error_and_does_the_rest() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    node.add("c1", &pod)?;
    // Neither the lock nor the IPAM plugin works.
    fs::remove_dir_all(node.folder().join("run"))?;
    fs::write(node.folder().join("run"), "")?;
    let del = node.call("DEL", "c1", Some(&pod));
    let absent = del.clone().with("ipam", json!({"type": "nosuch"}));
    absent.run()?.failure(105, &["lock", "nosuch"])?;
    let traces = node.traces()?;
    ensure!(
        traces.len() == 1 && traces[0].starts_with("lease"),
        "{traces:?}"
    );
    fs::remove_file(node.folder().join("run"))?;
    del.run()?.success()?;
    node.expect_no_trace()
}

/// Deletes the pod's namespace and waits until its veth is gone.
pub fn lose(node: &CniNode, pod: Host) -> Result<()> {
    let before = NetNs::open(pod.netns_path())?;
    let index = Netlink::open_in(&before)?.link("eth0")?;
    let index = index.context("no eth0")?.peer_index;
    drop(before);
    shell::run(&format!("ip netns delete {}", pod.name()))?;
    // The handle would keep the namespace alive.
    drop(pod);
    wait::until("the veth disappears with its namespace", || {
        let links = node.enter(|| Netlink::open()?.links())??;
        Ok(!links.iter().any(|link| Some(link.index) == index))
    })
}

/// Removes the files of a folder whose names begin with `prefix`.
pub fn remove_files(folder: &std::path::Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
