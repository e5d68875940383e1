//! Changes one node after another, and measures the time from each request to the change in the agent's maps.

use super::cluster::{ApiCluster, objects};
use crate::peer_addresses;
use anyhow::{Context, Result, anyhow, ensure};
use ipip_abi::Encapsulation;
use ipip_datapath::Maps;
use ipip_lab::api_agent::ApiAgent;
use ipip_testkit::node_maps;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::interval};

/// How often the maps are read.
const POLL_INTERVAL: Duration = Duration::from_micros(500);
/// Longest time without a new change before the missing ones count as lost.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A change that was requested.
struct Change {
    /// The peer's index in `PEERS`.
    peer: u32,
    at: Instant,
}

/// Makes `count` changes at this rate and returns the time that each took.
pub fn measure(
    cluster: &ApiCluster,
    agent: &ApiAgent<'_>,
    per_second: u32,
    count: u32,
) -> Result<Vec<Duration>> {
    let maps = agent.maps()?;
    let peers = node_maps::peers(&maps)?;
    let (sender, changes) = mpsc::channel();
    thread::scope(|scope| {
        let observer = scope.spawn(move || observe(&maps, &changes, count, agent));
        request(cluster, &peers, per_second, count, sender)?;
        let latencies = observer.join();
        latencies.map_err(|_| anyhow!("the thread that reads the maps panicked"))?
    })
}

/// Switches nodes to `encapsulation: udp`, one after another.
fn request(
    cluster: &ApiCluster,
    peers: &BTreeMap<String, u16>,
    per_second: u32,
    count: u32,
    changes: Sender<Change>,
) -> Result<()> {
    cluster.with_api(async |client| {
        let api = objects(client);
        let mut requests = JoinSet::new();
        let mut clock = interval(Duration::from_secs(1) / per_second);
        for number in 0..count {
            clock.tick().await;
            // A prime step visits the nodes in an order that differs from theirs.
            let name = peer_addresses::name(number * 2741 % cluster.nodes);
            let peer = peers
                .get(&name)
                .with_context(|| format!("the agent has no peer {name}"))?;
            let peer = u32::from(*peer);
            let at = Instant::now();
            changes.send(Change { peer, at })?;
            let patch = json!({"spec": {"encapsulation": "udp"}});
            let api = api.clone();
            requests.spawn(async move {
                let patch = Patch::Merge(patch);
                api.patch(&name, &PatchParams::default(), &patch).await
            });
        }
        while let Some(finished) = requests.join_next().await {
            finished??;
        }
        Ok(())
    })
}

/// Reads the maps until all changes are there; returns the time that each took.
fn observe(
    maps: &Maps,
    changes: &Receiver<Change>,
    count: u32,
    agent: &ApiAgent<'_>,
) -> Result<Vec<Duration>> {
    let mut pending: Vec<Change> = Vec::new();
    let mut latencies = Vec::new();
    let mut last_change = Instant::now();
    while latencies.len() < count as usize {
        for change in changes.try_iter() {
            pending.push(change);
            last_change = Instant::now();
        }
        let mut missing = Vec::with_capacity(pending.len());
        for change in pending {
            let entry = maps.peers.get(&change.peer, 0)?;
            if entry.encapsulation == Encapsulation::Udp as u8 {
                latencies.push(change.at.elapsed());
            } else {
                missing.push(change);
            }
        }
        pending = missing;
        ensure!(
            last_change.elapsed() < MAX_WAIT,
            "{} changes did not reach the maps within {MAX_WAIT:?}:\n{}",
            pending.len(),
            agent.log()
        );
        thread::sleep(POLL_INTERVAL);
    }
    Ok(latencies)
}
