//! Probes of paths: real agents with keys, a firewall on the way, and strangers that repeat what they have recorded.

use anyhow::{Context, Result, ensure};
use ipip_abi::{Counter, DropReason};
use ipip_lab::{Lab, LabNode, topology::STRANGER};
use ipip_testkit::{
    capture::{Capture, CaptureDirection, Packet},
    harness::Test,
    packet_builder, tests, wait,
};
use serde_json::Value;

pub const TESTS: &[Test<Lab>] = tests![
    each_peer_answers_probes_on_each_path_that_works,
    probes_are_sent_and_answered_while_no_agent_runs,
    a_firewall_that_drops_protocol_4_silences_only_probes_by_ipip,
    a_stranger_that_repeats_or_changes_a_probe_gets_no_answer,
];

fn each_peer_answers_probes_on_each_path_that_works(lab: &Lab) -> Result<()> {
    let (a1, b1) = (lab.node("a1")?, lab.node("b1")?);
    let before = (
        a1.counter(Counter::AnswerReceived)?,
        b1.counter(Counter::ProbeAnswered)?,
    );
    for (peer, kind, in_use) in [
        ("a2", "private", "private-ipip"),
        ("b1", "public", "public-ipip"),
        ("c1", "public", "public-ipip"),
    ] {
        let rows = probe(a1, peer)?;
        for path in [format!("{kind}-ipip"), format!("{kind}-udp")] {
            let row = row(&rows, &path)?;
            ensure!(
                row["answered"] == 3 && row["accepted"] == true,
                "{peer}: {row:#}"
            );
            ensure!(row["inUse"] == (path == in_use), "{peer}: {row:#}");
            ensure!(row["roundTripMs"].as_f64() > Some(0.0), "{peer}: {row:#}");
        }
    }
    let after = (
        a1.counter(Counter::AnswerReceived)?,
        b1.counter(Counter::ProbeAnswered)?,
    );
    ensure!(
        after.0 - before.0 >= 18,
        "answers at a1: {before:?} {after:?}"
    );
    ensure!(
        after.1 - before.1 >= 6,
        "answers of b1: {before:?} {after:?}"
    );
    // Nothing else was asked for.
    let output = a1.ipipctl(&["probe", "nobody"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && said.contains("the peers are a2, b1, c1"),
        "{said}"
    );
    Ok(())
}

fn probes_are_sent_and_answered_while_no_agent_runs(lab: &Lab) -> Result<()> {
    let ends = [lab.node("a1")?, lab.node("b1")?];
    ends.iter().try_for_each(|node| node.kill_agent())?;
    let rows = probe(ends[0], "b1");
    ends.iter().try_for_each(|node| node.restart_agent())?;
    let rows = rows?;
    let row = row(&rows, "public-ipip")?;
    ensure!(row["answered"] == 3, "{row:#}");
    Ok(())
}

fn a_firewall_that_drops_protocol_4_silences_only_probes_by_ipip(lab: &Lab) -> Result<()> {
    let (a1, gateway) = (lab.node("a1")?, lab.fabric().gateway("cloud-b")?);
    gateway.nft(
        "table ip no-ipip { chain forward { type filter hook forward priority 10; ip protocol 4 drop; }; }",
    )?;
    let output = a1.ipipctl(&["probe", "b1", "--timeout=1000", "--output=json"]);
    gateway.nft("delete table ip no-ipip")?;
    let output = output?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    let (ipip, udp) = (row(&rows, "public-ipip")?, row(&rows, "public-udp")?);
    ensure!(ipip["answered"] == 0 && ipip["inUse"] == true, "{ipip:#}");
    ensure!(udp["answered"] == 3 && udp["accepted"] == true, "{udp:#}");
    let again = probe(a1, "b1")?;
    ensure!(row(&again, "public-ipip")?["answered"] == 3, "{again:#}");
    Ok(())
}

fn a_stranger_that_repeats_or_changes_a_probe_gets_no_answer(lab: &Lab) -> Result<()> {
    let (a1, b1) = (lab.node("a1")?, lab.node("b1")?);
    let capture = lab.capture_on_internet("cloud-b")?;
    probe(a1, "b1")?;
    let packets = capture.stop()?;
    let (from, to) = (a1.public()?, b1.public()?);
    let is_probe = |it: &&Packet| it.is_ipip() && it.source == from && it.destination == to;
    let probe = packets.iter().find(is_probe).context("no probe passed")?;
    let internet = &lab.fabric().internet;
    let capture = Capture::start(internet, "to-stranger", CaptureDirection::Both)?;
    let mut changed = probe.payload.clone();
    // The clock of the prober: a later time.
    changed[28 + 8] ^= 1;
    for (inner, reason) in [
        (&probe.payload, DropReason::ProbeReplayed),
        (&changed, DropReason::ProbeNotAuthentic),
    ] {
        let before = b1.drops(reason)?;
        let packet = packet_builder::ipip(STRANGER, to, inner)?;
        packet_builder::send(&lab.fabric().stranger, &packet)?;
        wait::until(&format!("b1 counts {reason:?}"), || {
            Ok(b1.drops(reason)? > before)
        })?;
    }
    let packets = capture.stop()?;
    let answer = packets.iter().find(|it| it.destination == STRANGER);
    ensure!(answer.is_none(), "the stranger got {answer:?}");
    ensure!(packets.iter().filter(|it| it.source == STRANGER).count() == 2);
    Ok(())
}

/// What `ipipctl probe` shows of the paths to a peer, whether or not any answers.
pub fn probe(node: &LabNode, peer: &str) -> Result<Value> {
    let output = node.ipipctl(&["probe", peer, "--timeout=1000", "--output=json"])?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

/// The row of a candidate.
pub fn row<'a>(rows: &'a Value, path: &str) -> Result<&'a Value> {
    let mut found = rows.as_array().into_iter().flatten();
    let found = found.find(|row| row["candidate"] == path);
    found.with_context(|| format!("no candidate {path} in {rows:#}"))
}
