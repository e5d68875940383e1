//! One plugin that is measured, and its samples.

use super::REFERENCES;
use anyhow::{Context, Result, anyhow, ensure};
use ipip_datapath::{AttachMode, Programs, Promotion};
use ipip_testkit::{
    cni_node::{Call, CniNode, PLUGINS},
    host::Host,
};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

/// A plugin and its samples.
pub struct Contender {
    /// The program's name.
    pub name: &'static str,
    /// The samples so far.
    pub samples: CniSamples,
}

/// The samples of a plugin.
#[derive(Default)]
pub struct CniSamples {
    /// ADD, one after another.
    pub add: Vec<Duration>,
    /// DEL, one after another.
    pub del: Vec<Duration>,
    /// VERSION: the start of the program alone.
    pub start: Vec<Duration>,
    /// ADD + DEL while other ADDs and DELs run.
    pub parallel: Vec<Duration>,
    /// Promotion of a pod from clsact to TCX. Only our plugin has this and the next two.
    pub promotion: Vec<Duration>,
    /// DEL of a promoted pod.
    pub del_promoted: Vec<Duration>,
    /// ADD with `attach: tcx`.
    pub add_tcx: Vec<Duration>,
}

impl Contender {
    /// A plugin without samples.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            samples: CniSamples::default(),
        }
    }

    /// Times of ADD and DEL of one pod.
    pub fn add_and_del(
        &self,
        node: &CniNode,
        pod: &Host,
        id: &str,
    ) -> Result<(Duration, Duration)> {
        let (result, added) = self.timed(&self.call(node, "ADD", id, pod))?;
        let deleted = self.del(node, pod, id, result)?;
        Ok((added, deleted))
    }

    /// Promotes a pod from clsact to TCX, as the agent does some time after ADD, and times the promotion, DEL
    /// after it, and ADD that attaches by TCX at once.
    pub fn promote(&mut self, node: &CniNode, pod: &Host, id: &str) -> Result<()> {
        let (result, _) = self.timed(&self.call(node, "ADD", id, pod))?;
        let veth = result["interfaces"][0]["name"].as_str();
        let veth = veth.context("the result of ADD names no interface")?;
        let (outcome, took) = node.enter(|| -> Result<_> {
            let mut programs = Programs::open(node.pins(), AttachMode::Auto)?;
            let began = Instant::now();
            Ok((programs.promote(veth)?, began.elapsed()))
        })??;
        ensure!(outcome == Promotion::Done, "not promoted: {outcome:?}");
        let deleted = self.del(node, pod, id, result)?;
        let add = self.call(node, "ADD", id, pod);
        let (result, added) = self.timed(&add.with("attach", json!("tcx")))?;
        self.del(node, pod, id, result)?;
        self.samples.promotion.push(took);
        self.samples.del_promoted.push(deleted);
        self.samples.add_tcx.push(added);
        Ok(())
    }

    /// Time of VERSION: how long the program takes to start and to print the versions that it supports.
    pub fn version(&self, node: &CniNode) -> Result<Duration> {
        let mut call = node.call("VERSION", "", None);
        call.plugin = self.call(node, "VERSION", "", node).plugin;
        let (_, took) = self.timed(&call)?;
        Ok(took)
    }

    /// Times of ADD + DEL of all pods at the same time.
    pub fn parallel(&self, node: &CniNode, pods: &[Host], round: usize) -> Result<Vec<Duration>> {
        thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(number, pod)| {
                    let id = format!("r{round}n{number}");
                    scope.spawn(move || self.add_and_del(node, pod, &id))
                })
                .collect();
            let mut samples = Vec::new();
            for thread in threads {
                let (add, del) = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
                samples.push(add + del);
            }
            Ok(samples)
        })
    }

    fn del(&self, node: &CniNode, pod: &Host, id: &str, result: Value) -> Result<Duration> {
        let del = self.call(node, "DEL", id, pod);
        let (_, took) = self.timed(&del.with("prevResult", result))?;
        Ok(took)
    }

    fn call<'a>(&self, node: &'a CniNode, verb: &str, id: &str, pod: &Host) -> Call<'a> {
        let mut call = node.call(verb, id, Some(pod));
        if REFERENCES.contains(&self.name) {
            call.plugin = format!("{PLUGINS}/{}", self.name);
            call.conf["name"] = json!(self.name);
            call.conf["type"] = json!(self.name);
            // The usual configuration for pods.
            call.conf["bridge"] = json!("cni0");
            call.conf["isGateway"] = json!(true);
            call.conf["mtu"] = json!(1480);
            // A range for each plugin, because `bridge` keeps its gateway's address.
            let second = if self.name == "bridge" { 43 } else { 44 };
            let subnet = format!("10.{second}.0.0/16");
            call.conf["ipam"]["ranges"] = json!([[{"subnet": subnet}]]);
            call.conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        }
        call
    }

    /// The output of a call, which must succeed, and how long it took.
    fn timed(&self, call: &Call<'_>) -> Result<(Value, Duration)> {
        let began = Instant::now();
        let outcome = call.run()?;
        let took = began.elapsed();
        Ok((outcome.success().with_context(|| self.name)?, took))
    }
}
