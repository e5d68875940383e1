//! Traffic with peers: what goes through public endpoints is shown as billed.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, LabNode};
use ipip_testkit::{harness::Test, ping::Ping, tests, wait};
use serde_json::Value;
use std::time::Duration;

pub const TESTS: &[Test<Lab>] = tests![
    traffic_inside_a_realm_is_free_and_across_realms_billed,
    traffic_is_recorded_over_a_restart_and_shown_without_an_agent,
];

/// Requests, and answers, of one test.
const PINGS: u64 = 10;
/// Bytes of an IPv4 packet with 56 bytes of ICMP data, in IPIP.
const LEN: u64 = 20 + 8 + 56 + 20;

/// Longer than the time between two samples of an agent.
const SAMPLE: Duration = Duration::from_secs(90);

/// The numbers of a row, in total or in the last hour.
type Bytes = [u64; 4];
const TOTAL: [&str; 4] = ["txFree", "txBilled", "rxFree", "rxBilled"];
const HOUR: [&str; 4] = ["hourTxFree", "hourTxBilled", "hourRxFree", "hourRxBilled"];

fn traffic_inside_a_realm_is_free_and_across_realms_billed(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let before = recorded(node)?;
    for peer in ["a2", "b1"] {
        ping(lab, peer)?;
    }
    let after = recorded(node)?;
    ensure!(after["node"] == "a1" && after["realm"] == "cloud-a");
    let len = PINGS * LEN;
    for (peer, realm, expected) in [
        ("a2", "cloud-a", [len, 0, len, 0]),
        ("b1", "cloud-b", [0, len, 0, len]),
        ("c1", "cloud-c", [0; 4]),
    ] {
        ensure!(row(&after, peer)?["realm"] == realm, "{after:#}");
        for names in [TOTAL, HOUR] {
            let grown = grown(row(&before, peer)?, row(&after, peer)?, names)?;
            ensure!(grown == expected, "{peer}: {grown:?} of {names:?}");
            let grown = grown_between(&before, &after, realm, names)?;
            ensure!(grown == expected, "{realm}: {grown:?} of {names:?}");
        }
    }
    Ok(())
}

fn traffic_is_recorded_over_a_restart_and_shown_without_an_agent(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let before = recorded(node)?;
    node.kill_agent()?;
    let without = ping(lab, "b1").and_then(|()| shown(node, "state"));
    let nothing = shown(node, "no-such-folder");
    node.restart_agent()?;
    let (without, nothing) = (without?, nothing?);
    let expected = [0, PINGS * LEN, 0, PINGS * LEN];
    for names in [TOTAL, HOUR] {
        let grown = grown(row(&before, "b1")?, row(&without, "b1")?, names)?;
        ensure!(grown == expected, "{grown:?} of {names:?}");
    }
    // Without a record there are totals only.
    let plain = row(&nothing, "b1")?;
    ensure!(nothing["realm"].is_null() && nothing["recordedMinutes"].is_null());
    ensure!(plain["hourTxBilled"].is_null(), "{plain:#}");
    ensure!(plain["txBilled"].as_u64() >= Some(PINGS * LEN), "{plain:#}");

    ping(lab, "b1")?;
    let after = recorded(node)?;
    for names in [TOTAL, HOUR] {
        let grown = grown(row(&before, "b1")?, row(&after, "b1")?, names)?;
        ensure!(grown == expected.map(|it| 2 * it), "{grown:?} of {names:?}");
    }
    Ok(())
}

/// Sends requests from the pod of a1 to that of `peer`; all are answered.
fn ping(lab: &Lab, peer: &str) -> Result<()> {
    let (from, to) = (lab.pod("a1")?, lab.pod(peer)?.address());
    (0..PINGS).try_for_each(|_| Ping::to(to).reply_ttl(from).map(drop))
}

/// What `ipipctl traffic` shows, as soon as the agent has recorded the realms of the peers.
fn recorded(node: &LabNode) -> Result<Value> {
    let has_all = |view: &Value| {
        let mut peers = view["peers"].as_array().into_iter().flatten();
        view["realm"].is_string() && peers.all(|peer| peer["realm"].is_string())
    };
    // A peer that came after the last sample is in the next one.
    wait::within(SAMPLE, "the agent has recorded all peers", || {
        Ok(has_all(&shown(node, "state")?))
    })?;
    shown(node, "state")
}

/// What `ipipctl traffic` shows with the record in a folder of the node.
fn shown(node: &LabNode, folder: &str) -> Result<Value> {
    let folder = node.folder().join(folder);
    node.ipipctl_json(&["traffic", "--state-dir", &folder.to_string_lossy()])
}

fn row<'a>(view: &'a Value, peer: &str) -> Result<&'a Value> {
    let mut rows = view["peers"].as_array().into_iter().flatten();
    let found = rows.find(|row| row["node"] == peer);
    found.with_context(|| format!("no {peer} in {view:#}"))
}

/// How much the traffic between the realm of the node and `realm` has grown.
fn grown_between(before: &Value, after: &Value, realm: &str, names: [&str; 4]) -> Result<Bytes> {
    let pair = |view: &Value| {
        let mut rows = view["realmPairs"].as_array().into_iter().flatten();
        let is_pair = |row: &&Value| row["realm"] == "cloud-a" && row["peerRealm"] == realm;
        let found = rows.find(is_pair).cloned();
        found.with_context(|| format!("no {realm} in {view:#}"))
    };
    grown(&pair(before)?, &pair(after)?, names)
}

fn grown(before: &Value, after: &Value, names: [&str; 4]) -> Result<Bytes> {
    let number = |row: &Value, name| row[name].as_u64().with_context(|| format!("{row:#}"));
    let mut grown = [0; 4];
    for (grown, name) in grown.iter_mut().zip(names) {
        *grown = number(after, name)? - number(before, name)?;
    }
    Ok(grown)
}
