//! A pod begins with clsact, which attaches at once, and is promoted to TCX in a quiet period. Every operation
//! on the pod must work before, during and after the promotion. If the kernel has no TCX, the tests pass without
//! a check.

use crate::{add::address_of, gc::gc};
use anyhow::{Context, Result, ensure};
use ipip_abi::Program;
use ipip_datapath::{AttachMode, Programs, Promotion, remove};
use ipip_testkit::{
    cni_node::{CallResult, CniNode},
    host::Host,
    ping::Ping,
    sequence::Sequence,
    shell, wait,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

const CLSACT: [AttachMode; 1] = [AttachMode::Clsact];
const TCX: [AttachMode; 1] = [AttachMode::Tcx];
const BOTH: [AttachMode; 2] = [AttachMode::Tcx, AttachMode::Clsact];

/// A node with one pod, and the name of the pod's veth; `None` if the kernel has no TCX.
fn node() -> Result<Option<(CniNode, Host, Value, String)>> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(None);
    }
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let result = node.add("c1", &pod)?;
    let veth = result["interfaces"][0]["name"].as_str();
    let veth = veth.context("no host side")?.to_owned();
    Ok(Some((node, pod, result, veth)))
}

/// Expects that each program is attached to the pod in these modes alone, without filters of other modes.
fn expect(node: &CniNode, veth: &str, modes: &[AttachMode]) -> Result<()> {
    let attached = node.enter(|| Programs::open(node.pins(), AttachMode::Auto)?.attached())??;
    for program in [Program::FromPod, Program::ToPod] {
        let found: Vec<_> = attached
            .iter()
            .filter(|it| it.ifname == veth && it.program == program && !it.defunct)
            .map(|it| it.mode)
            .collect();
        ensure!(found == modes, "{program}: {found:?}, not {modes:?}");
    }
    let filters = filters(node, veth)?;
    let expected = if modes == TCX { 0 } else { 2 };
    ensure!(filters == expected, "{filters} filters with {modes:?}");
    Ok(())
}

/// Number of our filters on the pod's clsact qdisc.
fn filters(node: &CniNode, veth: &str) -> Result<usize> {
    let mut count = 0;
    for side in ["ingress", "egress"] {
        let line = format!("tc -n {} filter show dev {veth} {side}", node.name());
        let shown = shell::run(&line)?;
        let is_ours = |line: &&str| {
            line.contains(Program::FromPod.name()) || line.contains(Program::ToPod.name())
        };
        count += shown.lines().filter(is_ours).count();
    }
    Ok(count)
}

fn promote(node: &CniNode, veth: &str) -> Result<Promotion> {
    let promoted = node.enter(|| Programs::open(node.pins(), AttachMode::Auto)?.promote(veth))?;
    Ok(promoted?)
}

/// Attaches TCX and keeps clsact: the state after an agent was killed in the middle of a promotion.
fn halfway(node: &CniNode, veth: &str) -> Result<()> {
    node.enter(|| Programs::open(node.pins(), AttachMode::Tcx)?.attach_pod(veth))??;
    expect(node, veth, &BOTH)
}

fn check(node: &CniNode, pod: &Host, result: &Value) -> Result<()> {
    let check = node.call("CHECK", "c1", Some(pod));
    check.with("prevResult", result.clone()).run()?.success()?;
    Ok(())
}

#[test]
fn a_new_pod_has_clsact_until_it_is_promoted_and_tcx_afterwards() -> Result<()> {
    let Some((node, pod, result, veth)) = node()? else {
        return Ok(());
    };
    expect(&node, &veth, &CLSACT)?;
    check(&node, &pod, &result)?;
    for _ in 0..2 {
        ensure!(promote(&node, &veth)? == Promotion::Done);
        expect(&node, &veth, &TCX)?;
        check(&node, &pod, &result)?;
    }
    node.del("c1")?;
    node.expect_no_trace()
}

#[test]
fn tcx_and_clsact_that_are_asked_for_are_attached_at_once_and_for_good() -> Result<()> {
    let Some((node, pod, _, veth)) = node()? else {
        return Ok(());
    };
    for (mode, modes) in [("tcx", TCX), ("clsact", CLSACT)] {
        node.del("c1")?;
        let add = node.call("ADD", "c1", Some(&pod));
        add.with("attach", json!(mode)).run()?.success()?;
        expect(&node, &veth, &modes)?;
        let programs = || Programs::open(node.pins(), mode.parse()?)?.promotable();
        let promotable = node.enter(programs)??;
        ensure!(promotable.is_empty(), "{mode}: {promotable:?}");
    }
    Ok(())
}

#[test]
fn a_promotion_that_was_cut_short_is_finished_by_the_next() -> Result<()> {
    let Some((node, pod, result, veth)) = node()? else {
        return Ok(());
    };
    halfway(&node, &veth)?;
    check(&node, &pod, &result)?;
    // The next agent adopts the datapath.
    node.load()?;
    expect(&node, &veth, &BOTH)?;
    ensure!(promote(&node, &veth)? == Promotion::Done);
    expect(&node, &veth, &TCX)?;
    check(&node, &pod, &result)
}

#[test]
fn a_pod_that_is_half_promoted_is_deleted_collected_and_uninstalled_whole() -> Result<()> {
    let Some((node, pod, _, veth)) = node()? else {
        return Ok(());
    };
    halfway(&node, &veth)?;
    node.del("c1")?;
    node.expect_no_trace()?;

    node.add("c1", &pod)?;
    halfway(&node, &veth)?;
    gc(&node, json!([])).run()?.success()?;
    node.expect_no_trace()?;

    node.add("c1", &pod)?;
    halfway(&node, &veth)?;
    node.enter(|| remove(node.pins()))??;
    ensure!(filters(&node, &veth)? == 0, "filters are left");
    ensure!(!node.pins().root().exists(), "pins are left");
    Ok(())
}

#[test]
fn twenty_promotions_under_traffic_lose_no_packet() -> Result<()> {
    let Some((node, pod, result, veth)) = node()? else {
        return Ok(());
    };
    let address = address_of(&result)?;
    node.ip("address add 10.0.0.1/32 dev lo")?;
    wait::until("the pod answers", || {
        Ok(Ping::to(address).reply_ttl(&node).is_ok())
    })?;
    let node_address = Ipv4Addr::new(10, 0, 0, 1);
    let at = SocketAddrV4::new;
    let leaving = Sequence::start(&pod, &node, at(node_address, 7001), 5_000)?;
    let arriving = Sequence::start(&node, &pod, at(address, 7002), 5_000)?;
    let promoted = (0..20).try_for_each(|_| -> Result<()> {
        leaving.wait_for(100)?;
        arriving.wait_for(100)?;
        // A busy kernel may not have ended the links of the previous round yet.
        wait::until("the pod is promoted", || {
            Ok(promote(&node, &veth).is_ok_and(|it| it == Promotion::Done))
        })?;
        // Back to clsact: attach the filters, then remove the links.
        let filters = || Programs::open(node.pins(), AttachMode::Clsact)?.attach_pod(&veth);
        node.enter(filters)??;
        for program in [Program::FromPod, Program::ToPod] {
            fs::remove_file(node.pins().links().join(format!("{veth}@{program}")))?;
        }
        Ok(())
    });
    for (way, running) in [("leaving", leaving), ("arriving", arriving)] {
        let tallied = running.stop()?;
        ensure!(
            tallied.sent >= 2_000 && tallied.lost() == 0 && tallied.duplicates == 0,
            "{way}: {tallied:?}"
        );
    }
    promoted
}

#[test]
fn no_pod_is_promoted_while_a_pod_is_being_added() -> Result<()> {
    let Some((node, _pod, _, veth)) = node()? else {
        return Ok(());
    };
    let adding = Programs::open_for_pods(node.pins(), AttachMode::Clsact)?;
    ensure!(promote(&node, &veth)? == Promotion::Busy);
    expect(&node, &veth, &CLSACT)?;
    drop(adding);
    ensure!(promote(&node, &veth)? == Promotion::Done);
    Ok(())
}

#[test]
fn a_pod_that_is_deleted_while_it_is_promoted_leaves_nothing() -> Result<()> {
    let Some((node, pod, _, veth)) = node()? else {
        return Ok(());
    };
    let mut gone = 0;
    let mut whole = Duration::from_millis(20);
    for round in 0..40 {
        // The promotions are spread over the whole deletion and a short time after it.
        let part = whole.mul_f64(f64::from(round % 10) / 8.0);
        let promoted = thread::scope(|scope| -> Result<Promotion> {
            let promoted = scope.spawn(|| {
                thread::sleep(part);
                promote(&node, &veth)
            });
            let began = Instant::now();
            let deleted = node.del("c1");
            // A machine under load deletes more slowly, so the next round uses the duration of this one.
            whole = began.elapsed();
            let promoted = promoted.join();
            deleted?;
            promoted.unwrap_or_else(|_| Err(anyhow::anyhow!("a panic")))
        })?;
        gone += u32::from(promoted == Promotion::Gone);
        node.expect_no_trace()?;
        node.add("c1", &pod)?;
    }
    ensure!(gone > 0, "no pod was deleted in the middle");
    Ok(())
}

#[test]
fn a_promotion_of_a_pod_that_is_gone_removes_its_pins() -> Result<()> {
    let Some((node, pod, _, veth)) = node()? else {
        return Ok(());
    };
    pod.ip("link delete eth0")?;
    ensure!(promote(&node, &veth)? == Promotion::Gone);
    ensure!(node.pins().interfaces()?.iter().all(|it| *it != veth));
    Ok(())
}

#[test]
fn pods_are_added_killed_and_deleted_under_promotions_and_leave_nothing() -> Result<()> {
    let Some((node, pod, _, veth)) = node()? else {
        return Ok(());
    };
    let promoting = AtomicBool::new(true);
    let done = AtomicU32::new(0);
    let outcome = thread::scope(|scope| {
        let promoter = scope.spawn(|| -> Result<()> {
            while promoting.load(Ordering::Relaxed) {
                if promote(&node, &veth)? == Promotion::Done {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let worked = (|| {
            wait::until("a pod is promoted", || Ok(done.load(Ordering::Relaxed) > 0))?;
            for round in 0..60_u64 {
                node.del("c1")?;
                let mut child = node.call("ADD", "c1", Some(&pod)).start()?;
                if round % 2 == 0 {
                    thread::sleep(Duration::from_millis(round));
                    child.kill()?;
                    child.wait()?;
                } else {
                    CallResult::of(&child.wait_with_output()?)?.success()?;
                    thread::sleep(Duration::from_millis(round));
                }
            }
            node.del("c1")
        })();
        promoting.store(false, Ordering::Relaxed);
        let promoted = promoter.join();
        worked.and_then(|()| promoted.unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))))
    });
    outcome?;
    node.expect_no_trace()
}
