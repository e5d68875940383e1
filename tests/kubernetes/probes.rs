//! Probes between the nodes, with the keys that the agents publish.

use crate::ipipctl;
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::scenarios::Workloads;
use ipip_testkit::{harness::Test, tests, wait};
use serde_json::Value;
use std::time::Duration;

pub const TESTS: &[Test<Workloads>] =
    tests![probes_show_which_paths_the_firewalls_of_the_clouds_pass];

/// Longest time until each agent has followed the keys of all others.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The firewalls pass protocol 4 and no UDP.
fn probes_show_which_paths_the_firewalls_of_the_clouds_pass(
    workloads: &mut Workloads,
) -> Result<()> {
    for (machine, spec) in workloads.cluster.nodes() {
        let mut rows = Value::Null;
        wait::within(MAX_WAIT, &format!("all peers answer {}", spec.name), || {
            rows = ipipctl(machine, &["probe"])?;
            let mut others = workloads.cluster.nodes();
            Ok(others.all(|(_, peer)| {
                let is_accepted =
                    |candidate| answer(&rows, &peer.name, candidate)["accepted"] == true;
                match peer.cloud == spec.cloud {
                    _ if peer.name == spec.name => true,
                    true => is_accepted("private-ipip") && is_accepted("private-udp"),
                    false => is_accepted("public-ipip"),
                }
            }))
        })
        .with_context(|| format!("{rows:#}"))?;
        for (_, peer) in workloads
            .cluster
            .nodes()
            .filter(|it| it.1.cloud != spec.cloud)
        {
            let udp = answer(&rows, &peer.name, "public-udp");
            ensure!(udp["sent"] == 3 && udp["answered"] == 0, "{udp:#}");
        }
    }
    Ok(())
}

/// What probes of a candidate have shown; null if it was not asked.
fn answer<'a>(rows: &'a Value, peer: &str, candidate: &str) -> &'a Value {
    let mut rows = rows.as_array().into_iter().flatten();
    let row = rows.find(|row| row["node"] == peer && row["candidate"] == candidate);
    row.unwrap_or(&Value::Null)
}
