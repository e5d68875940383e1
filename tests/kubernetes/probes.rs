//! Probes between the nodes, with the keys that the agents publish.

use crate::ipipctl;
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::scenarios::Workloads;
use ipip_testkit::{harness::Test, tests, wait};
use serde_json::Value;
use std::time::Duration;

pub const TESTS: &[Test<Workloads>] =
    tests![every_peer_answers_authentic_probes_on_private_or_public_paths];

/// Longest time until each agent has followed the keys of all others.
const MAX_WAIT: Duration = Duration::from_secs(30);

fn every_peer_answers_authentic_probes_on_private_or_public_paths(
    workloads: &mut Workloads,
) -> Result<()> {
    for (machine, spec) in workloads.cluster.nodes() {
        let mut rows = Value::Null;
        wait::within(MAX_WAIT, &format!("all peers answer {}", spec.name), || {
            rows = ipipctl(machine, &["probe"])?;
            Ok(workloads.cluster.nodes().all(|(_, peer)| {
                let of_peer = || {
                    rows.as_array()
                        .into_iter()
                        .flatten()
                        .filter(|row| row["node"] == peer.name)
                };
                let kind = if peer.cloud == spec.cloud {
                    "private"
                } else {
                    "public"
                };
                let answers = |path: &str| {
                    of_peer().any(|row| row["candidate"] == path && row["accepted"] == true)
                };
                peer.name == spec.name
                    || (answers(&format!("{kind}-ipip")) && answers(&format!("{kind}-udp")))
            }))
        })
        .with_context(|| format!("{rows:#}"))?;
        let drops = ipipctl(machine, &["drops"])?;
        let is_probe = |row: &&Value| {
            row["reason"]
                .as_str()
                .is_some_and(|it| it == "ProbeNotAuthentic")
        };
        let forged = drops.as_array().into_iter().flatten().find(is_probe);
        ensure!(forged.is_none(), "{}: {forged:?}", spec.name);
    }
    Ok(())
}
