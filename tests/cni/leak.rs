//! A plugin that is killed at any point leaks nothing.

use crate::gc::gc;
use anyhow::{Result, ensure};
use ipip_testkit::{
    cni_node::{CallResult, CniNode},
    host::Host,
};
use serde_json::json;
use std::{
    env,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

/// Variable with the number of ADDs in the long test. 10,000 take some ten minutes.
const ROUNDS: &str = "IPIP_LEAK_ROUNDS";

#[test]
fn kill_9_anywhere_in_add_and_then_del_leaves_nothing() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let mut whole = Duration::ZERO;
    let mut killed = 0;
    for round in 0..150 {
        if round % 30 == 0 {
            // Measured repeatedly, because the load of the machine may change.
            whole = typical(&node, &pod)?;
        }
        let id = format!("c{round}");
        let mut child = node.call("ADD", &id, Some(&pod)).start()?;
        // The kills are spread over the whole ADD and a short time after it.
        thread::sleep(whole.mul_f64(f64::from(round % 30) / 26.0));
        killed += u32::from(child.try_wait()?.is_none());
        child.kill()?;
        child.wait()?;
        node.del(&id)?;
        node.expect_no_trace()?;
    }
    ensure!(killed > 50, "only {killed} of 150 were killed on the way");
    Ok(())
}

#[test]
fn kill_9_anywhere_in_del_and_then_del_leaves_nothing() -> Result<()> {
    let node = CniNode::ready()?;
    let pod = node.pod("p")?;
    let whole = typical(&node, &pod)?;
    for round in 0..60 {
        let id = format!("c{round}");
        node.add(&id, &pod)?;
        let mut child = node.call("DEL", &id, Some(&pod)).start()?;
        thread::sleep(whole.mul_f64(f64::from(round) / 50.0));
        child.kill()?;
        child.wait()?;
        node.del(&id)?;
        node.expect_no_trace()?;
    }
    Ok(())
}

#[test]
fn adds_that_are_killed_or_deleted_and_then_collected_leak_nothing() -> Result<()> {
    let rounds = match env::var(ROUNDS) {
        Ok(text) => text.parse()?,
        Err(_) => 400,
    };
    let node = CniNode::ready()?;
    let pods = [node.pod("a")?, node.pod("b")?];
    let whole = typical(&node, &pods[0])?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut killed, mut deleted, mut collected) = (0_u32, 0_u32, 0_u32);
    for round in 0..rounds {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let id = format!("c{round}");
        // The veth of a killed ADD stays until GC, so the next ADD goes to another pod.
        let pod = match pods.iter().find(|pod| is_free(pod)) {
            Some(pod) => pod,
            None => {
                gc(&node, json!([])).run()?.success()?;
                collected += 1;
                node.expect_no_trace()?;
                &pods[0]
            }
        };
        let mut child = node.call("ADD", &id, Some(pod)).start()?;
        if random.is_multiple_of(2) {
            let instant = (random >> 8) % 1000;
            thread::sleep(whole.mul_f64(instant as f64 / 1000.0));
            child.kill()?;
            child.wait()?;
            killed += 1;
        } else {
            CallResult::of(&child.wait_with_output()?)?.success()?;
            node.del(&id)?;
            deleted += 1;
        }
    }
    gc(&node, json!([])).run()?.success()?;
    let traces = node.traces()?;
    // `println!` would be captured.
    writeln!(
        io::stderr(),
        "{rounds} ADDs: {killed} killed, {deleted} deleted, {} collections, {} leaked",
        collected + 1,
        traces.len()
    )?;
    ensure!(traces.is_empty(), "leaked: {traces:?}");
    Ok(())
}

/// Median duration of an ADD. A single one may take ten times as long on a busy machine.
fn typical(node: &CniNode, pod: &Host) -> Result<Duration> {
    let mut taken = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        node.add("typical", pod)?;
        taken.push(began.elapsed());
        node.del("typical")?;
    }
    taken.sort();
    Ok(taken[taken.len() / 2])
}

fn is_free(pod: &Host) -> bool {
    pod.ip("-o link").is_ok_and(|links| !links.contains("eth0"))
}
