//! The datapath outlives its agent.

use anyhow::{Result, ensure};
use ipip_lab::{Lab, LabNode};
use ipip_testkit::{harness::Test, ping::Ping, sequence::Sequence, tests};

pub const TESTS: &[Test<Lab>] = tests![
    kill_9_and_restart_of_an_agent_lose_no_packet_of_10000_a_second,
    sigterm_leaves_the_traffic_flowing,
    pods_start_and_stop_while_the_agent_is_down,
];

const PER_SECOND: u64 = 10_000;

fn kill_9_and_restart_of_an_agent_lose_no_packet_of_10000_a_second(lab: &Lab) -> Result<()> {
    loses_nothing(lab, |node, traffic| {
        node.kill_agent()?;
        traffic.wait_for(PER_SECOND)?;
        node.restart_agent()
    })
}

fn sigterm_leaves_the_traffic_flowing(lab: &Lab) -> Result<()> {
    loses_nothing(lab, |node, traffic| {
        let status = node.stop_agent()?;
        ensure!(status.success(), "the agent ended with {status}");
        traffic.wait_for(PER_SECOND)?;
        node.restart_agent()
    })
}

/// Expects that no packet between clouds from and to the pod on `a1` is lost while `something` happens to that node.
/// `something` also gets the stream that leaves the pod.
fn loses_nothing(
    lab: &Lab,
    something: impl FnOnce(&LabNode, &Sequence) -> Result<()>,
) -> Result<()> {
    let (one, other) = (lab.pod("a1")?, lab.pod("b1")?);
    // The first packet of a path may be lost during address resolution, which is not tested here.
    Ping::to(other.address()).reply_ttl(one)?;
    let leaving = Sequence::start(one, other, other.at(7000), PER_SECOND)?;
    let arriving = Sequence::start(other, one, one.at(7000), PER_SECOND)?;
    let both = || {
        leaving.wait_for(PER_SECOND / 2)?;
        arriving.wait_for(PER_SECOND / 2)
    };
    let done = both()
        .and_then(|()| something(one.node(), &leaving))
        .and_then(|()| both());
    let (leaving, arriving) = (leaving.stop()?, arriving.stop()?);
    done?;
    for (way, tallied) in [("leaving", leaving), ("arriving", arriving)] {
        ensure!(
            tallied.sent >= PER_SECOND,
            "too few packets to prove anything: {tallied:?}"
        );
        ensure!(
            tallied.lost() == 0 && tallied.duplicates == 0,
            "{way}: {tallied:?}"
        );
    }
    Ok(())
}

fn pods_start_and_stop_while_the_agent_is_down(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    node.kill_agent()?;
    let started = lab.start_pod("a1", "orphan").and_then(|pod| {
        for peer in ["a2", "b1"] {
            Ping::to(lab.pod(peer)?.address()).reply_ttl(&pod)?;
            Ping::to(pod.address()).reply_ttl(lab.pod(peer)?)?;
        }
        Ping::to(pod.address()).reply_ttl(lab.pod("a1")?)?;
        pod.check()?;
        pod.delete()
    });
    node.restart_agent()?;
    started?;
    Ping::to(lab.pod("b1")?.address()).reply_ttl(lab.pod("a1")?)?;
    Ok(())
}
