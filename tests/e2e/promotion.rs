//! Agents promote pods from clsact to TCX under their traffic.

use anyhow::{Context, Result, ensure};
use ipip_datapath::{AttachMode, Programs};
use ipip_lab::{Lab, LabNode, LabPod};
use ipip_testkit::{harness::Test, host::Host, ping::Ping, sequence::Sequence, tests, wait};

pub const TESTS: &[Test<Lab>] = tests![
    a_pod_is_promoted_to_tcx_without_a_lost_packet,
    an_agent_that_is_killed_in_the_middle_of_a_promotion_loses_no_packet_and_the_next_finishes_it,
];

const PER_SECOND: u64 = 5_000;

/// Keeps the agent of a node from promoting pods until the returned value is dropped, as an ADD does. Traffic
/// therefore begins before the promotion, even on a slow machine.
fn hold_promotions(node: &LabNode) -> Result<Programs> {
    Ok(node.enter(|| Programs::open_for_pods(node.pins(), AttachMode::Clsact))??)
}

/// The modes in which the pod's programs are attached, each once.
fn modes(pod: &LabPod) -> Result<Vec<AttachMode>> {
    let (node, veth) = (pod.node(), pod.veth()?);
    let programs = || Programs::open(node.pins(), AttachMode::Auto)?.attached();
    let attached = node.enter(programs)??;
    let of_pod = attached.iter().filter(|it| it.ifname == veth);
    let mut modes: Vec<_> = of_pod.map(|it| it.mode).collect();
    ensure!(modes.len() >= 2, "a program is missing: {attached:?}");
    modes.dedup();
    Ok(modes)
}

/// Expects that no packet is lost while `something` happens: between the pod and a pod of another cloud, and between
/// the pod and its own node through the host stack, both ways.
fn loses_nothing(lab: &Lab, pod: &LabPod, something: impl FnOnce() -> Result<()>) -> Result<()> {
    let (node, other) = (&**pod.node(), lab.pod("b1")?);
    let own = pod.node().internal_ip();
    let at = |host: std::net::Ipv4Addr, port| std::net::SocketAddrV4::new(host, port);
    // The first packets may be lost during address resolution, or until the kernel sees that a new link is up.
    for (from, to) in [(&**pod, other.address()), (node, pod.address())] {
        Ping::to(to).reply_ttl(from)?;
    }
    let ways: [(&str, &Host, &Host, _); 4] = [
        ("to another cloud", pod, other, other.at(7001)),
        ("from another cloud", other, pod, pod.at(7002)),
        ("to the node", pod, node, at(own, 7003)),
        ("from the node", node, pod, pod.at(7004)),
    ];
    let running = ways.map(|(way, from, to, at)| {
        let running = Sequence::start(from, to, at, PER_SECOND);
        (way, running)
    });
    let some_packets = || {
        let mut streams = running.iter().flat_map(|(_, running)| running);
        streams.try_for_each(|stream| stream.wait_for(PER_SECOND / 2))
    };
    let done = some_packets().and_then(|()| something());
    let done = done.and_then(|()| some_packets());
    // Stop all streams before an error of one returns.
    let tallied = running.map(|(way, running)| (way, running.and_then(Sequence::stop)));
    for (way, tallied) in tallied {
        let tallied = tallied?;
        ensure!(
            tallied.sent >= PER_SECOND && tallied.lost() == 0 && tallied.duplicates == 0,
            "{way}: {tallied:?}"
        );
    }
    done
}

fn a_pod_is_promoted_to_tcx_without_a_lost_packet(lab: &Lab) -> Result<()> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(());
    }
    let held = hold_promotions(lab.node("a1")?)?;
    let pod = lab.start_pod("a1", "new")?;
    ensure!(modes(&pod)? == [AttachMode::Clsact], "{:?}", modes(&pod)?);
    loses_nothing(lab, &pod, || {
        drop(held);
        pod.node().wait_promoted()
    })?;
    ensure!(modes(&pod)? == [AttachMode::Tcx], "{:?}", modes(&pod)?);
    pod.check()?;
    pod.delete()
}

fn an_agent_that_is_killed_in_the_middle_of_a_promotion_loses_no_packet_and_the_next_finishes_it(
    lab: &Lab,
) -> Result<()> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(());
    }
    let held = hold_promotions(lab.node("a1")?)?;
    let pod = lab.start_pod("a1", "new")?;
    let node = pod.node();
    let began = node
        .pins()
        .links()
        .join(format!("{}@from_pod", pod.veth()?));
    loses_nothing(lab, &pod, || {
        drop(held);
        // When the agent dies, one of the two programs is usually attached in both modes.
        wait::until("a promotion begins", || Ok(began.exists()))?;
        node.kill_agent()?;
        pod.check().context("between two agents")?;
        node.restart_agent()?;
        node.wait_promoted()
    })?;
    ensure!(modes(&pod)? == [AttachMode::Tcx], "{:?}", modes(&pod)?);
    pod.check()?;
    pod.delete()
}
