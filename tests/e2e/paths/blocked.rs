//! A cloud whose gateway drops packets on the path in use.

use super::{FAILOVER, RETURN, path, traffic::Traffic, wait_for_path};
use crate::probes;
use anyhow::{Context, Result, ensure};
use ipip_abi::{Candidate, Counter};
use ipip_lab::{Lab, LabNode, firewall::Firewall};
use ipip_testkit::{harness::Test, tests};
use std::{
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] =
    tests![a_firewall_that_begins_to_drop_protocol_4_both_ways_is_avoided_by_udp,];

/// Further ones that take minutes.
pub const LONG_TESTS: &[Test<Lab>] = tests![
    a_firewall_that_begins_to_drop_protocol_4_into_a_cloud_is_avoided_by_udp,
    a_firewall_that_begins_to_drop_protocol_4_out_of_a_cloud_is_avoided_by_udp,
    the_path_in_use_stays_while_the_agents_of_both_ends_are_dead,
    thirty_percent_loss_does_not_make_paths_flap,
];

const PER_SECOND: u64 = 10_000;
const PROTOCOL_4: &str = "ip protocol 4";

fn a_firewall_that_begins_to_drop_protocol_4_both_ways_is_avoided_by_udp(lab: &Lab) -> Result<()> {
    avoids(lab, "a1", PROTOCOL_4)
}

fn a_firewall_that_begins_to_drop_protocol_4_into_a_cloud_is_avoided_by_udp(
    lab: &Lab,
) -> Result<()> {
    avoids(lab, "a2", "iifname wan ip protocol 4")
}

fn a_firewall_that_begins_to_drop_protocol_4_out_of_a_cloud_is_avoided_by_udp(
    lab: &Lab,
) -> Result<()> {
    avoids(lab, "c1", "oifname wan ip protocol 4")
}

/// Expects that traffic between `from` and b1 takes another path while the gateway of b1 drops some packets, and returns
/// without loss. Each test has a node of its own, because a path that was left before has to prove itself for longer.
fn avoids(lab: &Lab, from: &str, dropped: &str) -> Result<()> {
    let (one, other) = (lab.pod(from)?, lab.pod("b1")?);
    let ends = [&**one.node(), &**other.node()];
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    let before = counters(ends)?;
    let traffic = Traffic::start(one, other, 7000, PER_SECOND)?;
    traffic.wait_for(PER_SECOND)?;

    let firewall = Firewall::start(lab.fabric().gateway("cloud-b")?, &[dropped])?;
    wait_for_path(ends, Candidate::PublicUdp, FAILOVER * 2)?;
    traffic.wait_for(PER_SECOND)?;
    // Two streams overlap, so that the path is never idle.
    let further = Traffic::start(one, other, 7001, PER_SECOND)?;
    traffic.stop()?.failed_over(dropped)?;
    ensure!(firewall.dropped()?[0] > 0, "the firewall drops nothing");

    drop(firewall);
    let opened = Instant::now();
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    let seconds = opened.elapsed().as_secs_f64();
    eprintln!("{dropped}: ipip is used again after {seconds:.1} s");
    further.wait_for(PER_SECOND)?;
    further.stop()?.lost_nothing()?;
    for ((name, before), (_, after)) in before.into_iter().zip(counters(ends)?) {
        ensure!(after > before, "{name}: {before}, {after}");
    }
    Ok(())
}

/// The counters of probes of both nodes.
fn counters(ends: [&LabNode; 2]) -> Result<Vec<(String, u64)>> {
    let mut counted = Vec::new();
    for node in ends {
        for counter in [
            Counter::ProbeSent,
            Counter::ProbeAnswered,
            Counter::AnswerReceived,
        ] {
            let name = format!("{} of {}", counter.name(), node.spec().name);
            counted.push((name, node.counter(counter)?));
        }
    }
    Ok(counted)
}

/// The path is not the configured one, so an agent that began anew would be found, too.
fn the_path_in_use_stays_while_the_agents_of_both_ends_are_dead(lab: &Lab) -> Result<()> {
    let (one, other, third) = (lab.pod("a1")?, lab.pod("b1")?, lab.node("c1")?);
    let ends = [&**one.node(), &**other.node()];
    let before = Traffic::start(one, other, 7000, PER_SECOND)?;
    let firewall = Firewall::start(lab.fabric().gateway("cloud-b")?, &[PROTOCOL_4])?;
    wait_for_path(ends, Candidate::PublicUdp, FAILOVER * 2)?;
    let traffic = Traffic::start(one, other, 7001, PER_SECOND)?;
    drop(before);
    traffic.wait_for(PER_SECOND)?;

    let [one_dead, other_dead] = ends.map(Dead::kill);
    let dead = [one_dead?, other_dead?];
    for node in ends {
        let rows = probes::probe(third, &node.spec().name)?;
        let row = probes::row(&rows, "public-udp")?;
        ensure!(row["answered"] == 3 && row["accepted"] == true, "{row:#}");
    }
    traffic.wait_for(5 * PER_SECOND)?;
    wait_for_path(ends, Candidate::PublicUdp, Duration::ZERO)?;
    dead.into_iter().try_for_each(Dead::restart)?;
    traffic.wait_for(5 * PER_SECOND)?;
    wait_for_path(ends, Candidate::PublicUdp, Duration::ZERO)?;
    drop(firewall);
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    traffic.stop()?.lost_nothing()
}

/// A node whose agent is killed. Dropping this value starts it again.
pub struct Dead<'a>(&'a LabNode);

impl<'a> Dead<'a> {
    pub fn kill(node: &'a LabNode) -> Result<Self> {
        node.kill_agent()?;
        Ok(Self(node))
    }

    pub fn restart(self) -> Result<()> {
        self.0.restart_agent()
    }
}

impl Drop for Dead<'_> {
    fn drop(&mut self) {
        if !self.0.agent_runs()
            && let Err(error) = self.0.restart_agent()
        {
            eprintln!("starting an agent again: {error:#}");
        }
    }
}

fn thirty_percent_loss_does_not_make_paths_flap(lab: &Lab) -> Result<()> {
    const LOSS: &str = "numgen random mod 100 < 30";
    let (one, other) = (lab.pod("a1")?, lab.pod("b1")?);
    let ends = [&**one.node(), &**other.node()];
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    let traffic = Traffic::start(one, other, 7000, PER_SECOND / 10)?;
    let outside = ends[0].public()?;
    let lossy = ["saddr", "daddr"].map(|end| format!("ip {end} {outside} {LOSS}"));
    let gateway = lab.fabric().gateway("cloud-b")?;
    let firewall = Firewall::start(gateway, &lossy.each_ref().map(String::as_str))?;
    let mut used = [vec![Candidate::PublicIpip], vec![Candidate::PublicIpip]];
    watch(ends, &mut used, Duration::from_secs(40))?;
    let dropped = firewall.dropped()?;
    drop(firewall);
    let cleared = Instant::now();
    watch(ends, &mut used, Duration::from_secs(10))?;
    while used
        .iter()
        .any(|it| it.last() != Some(&Candidate::PublicIpip))
    {
        ensure!(cleared.elapsed() < RETURN, "without loss: {used:?}");
        watch(ends, &mut used, Duration::from_secs(1))?;
    }
    eprintln!("30% loss: {used:?}");
    for (node, used) in ends.iter().zip(&used) {
        let changes = used.windows(2);
        let is_once = |change| changes.clone().filter(|it| *it == change).count() == 1;
        ensure!(changes.clone().all(is_once), "{}: {used:?}", node.name());
    }
    for (way, tallied) in traffic.stop()?.ways {
        ensure!(tallied.longest_gap <= FAILOVER, "{way}: {tallied:?}");
    }
    ensure!(dropped.iter().all(|it| *it > 5000), "{dropped:?}");
    Ok(())
}

/// Adds each path that the nodes use to each other during this time to those that they used.
fn watch(ends: [&LabNode; 2], used: &mut [Vec<Candidate>; 2], duration: Duration) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < duration {
        for (used, [node, peer]) in used.iter_mut().zip([ends, [ends[1], ends[0]]]) {
            let now = path(node, peer)?.context("there is no path")?;
            if used.last() != Some(&now) {
                used.push(now);
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
