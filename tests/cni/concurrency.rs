//! Many calls of the plugin at the same time.

use crate::{add::address_of, gc::gc};
use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, Topology};
use ipip_testkit::{
    cni_node::{CallResult, CniNode},
    host::Host,
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

#[test]
fn two_adds_of_one_container_at_once_make_one_pod() -> Result<()> {
    let node = CniNode::ready()?;
    for round in 0..20 {
        let id = format!("c{round}");
        let pod = node.pod(&id)?;
        let add = node.call("ADD", &id, Some(&pod));
        let children = [add.start()?, add.start()?];
        let mut won = Vec::new();
        for child in children {
            let outcome = CallResult::of(&child.wait_with_output()?)?;
            if outcome.success {
                won.push(outcome.printed);
            } else {
                outcome.failure(103, &["added before"])?;
            }
        }
        ensure!(won.len() == 1, "{} of two succeeded", won.len());
        let check = node.call("CHECK", &id, Some(&pod));
        check.with("prevResult", won.remove(0)).run()?.success()?;
        node.del(&id)?;
        node.expect_no_trace()?;
    }
    Ok(())
}

#[test]
fn a_hundred_adds_at_once_have_a_hundred_addresses_and_leave_no_lock() -> Result<()> {
    let node = CniNode::ready()?;
    let pods: Vec<Host> = (0..100)
        .map(|number| node.pod(&format!("p{number}")))
        .collect::<Result<_>>()?;
    let ids: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    let mut children = Vec::new();
    for (id, pod) in ids.iter().zip(&pods) {
        children.push(node.call("ADD", id, Some(pod)).start()?);
    }
    let mut addresses = BTreeSet::new();
    for child in children {
        let result = CallResult::of(&child.wait_with_output()?)?.success()?;
        let address = address_of(&result)?;
        ensure!(addresses.insert(address), "{address} was given twice");
    }
    ensure!(addresses.len() == 100 && node.traces()?.len() == 500);
    let locks = fs::read_to_string("/proc/locks")?;
    let inode =
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(node.folder().join("run/cni.lock"))?);
    ensure!(
        !locks.contains(&format!(":{inode} ")),
        "a lock is held: {locks}"
    );
    let mut children = Vec::new();
    for (id, pod) in ids.iter().zip(&pods) {
        children.push(node.call("DEL", id, Some(pod)).start()?);
    }
    for child in children {
        CallResult::of(&child.wait_with_output()?)?.success()?;
    }
    node.expect_no_trace()
}

#[test]
fn gc_waits_for_running_adds_and_never_removes_half_of_one() -> Result<()> {
    let node = CniNode::ready()?;
    let pods: Vec<Host> = (0..8)
        .map(|number| node.pod(&format!("p{number}")))
        .collect::<Result<_>>()?;
    let valid: Vec<_> = (0..8)
        .map(|number| json!({"containerID": format!("c{number}"), "ifname": "eth0"}))
        .collect();
    for _ in 0..5 {
        let mut children = Vec::new();
        let mut collectors = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let id = format!("c{number}");
            children.push((id.clone(), pod, node.call("ADD", &id, Some(pod)).start()?));
            collectors.push(gc(&node, json!(valid)).start()?);
        }
        for (id, pod, child) in children {
            let result = CallResult::of(&child.wait_with_output()?)?.success()?;
            let check = node.call("CHECK", &id, Some(pod));
            check.with("prevResult", result).run()?.success()?;
        }
        for child in collectors {
            CallResult::of(&child.wait_with_output()?)?.success()?;
        }
        gc(&node, json!([])).run()?.success()?;
        node.expect_no_trace()?;
    }
    Ok(())
}

#[test]
fn pods_are_added_while_an_agent_restarts_again_and_again() -> Result<()> {
    let lab = Lab::start(Topology::one_realm())?;
    let node = lab.nodes().first().context("no node")?;
    let name = node.spec().name.clone();
    let (done, restarted) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let restarts = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                node.kill_agent()?;
                node.restart_agent()?;
                restarted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let enough = |number| number >= 30 && restarted.load(Ordering::Relaxed) >= 2;
        let added = (0..1000)
            .take_while(|&number| !enough(number) && !restarts.is_finished())
            .try_for_each(|number| {
                let pod = lab.start_pod(&name, &format!("extra{number}"))?;
                pod.check()?;
                pod.delete()
            });
        done.store(true, Ordering::Relaxed);
        restarts
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that restarts the agent panicked"))??;
        added?;
        let restarted = restarted.load(Ordering::Relaxed);
        ensure!(restarted >= 2, "only {restarted} restarts prove nothing");
        Ok(())
    })
}
