//! A firewall of a cloud that admits tunnel packets only for a time after the node behind it has sent some.

use super::{FAILOVER, RETURN, blocked::Dead, path, traffic::Traffic, wait_for_path};
use crate::probes;
use anyhow::{Result, ensure};
use ipip_abi::Candidate;
use ipip_lab::{Lab, LabNode, firewall::counted};
use ipip_netlink::sysctl;
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange},
    harness::Test,
    host::Host,
    ping::{Answer, Ping},
    sequence::Sequence,
    tests, wait,
};
use std::{thread, time::Duration};

pub const TESTS: &[Test<Lab>] = tests![
    a_path_that_a_stateful_firewall_closes_is_left_for_one_that_it_does_not_close,
    where_only_a_path_through_a_stateful_firewall_exists_what_begins_inside_works,
];

/// Further ones that take minutes.
pub const LONG_TESTS: &[Test<Lab>] = tests![
    a_stateful_firewall_that_forgets_after_half_a_minute_closes_no_path_in_use,
    a_path_that_a_stateful_firewall_closes_is_left_without_traffic,
];

const PROTOCOL_4: &str = "ip protocol 4";
const UDP: &str = "udp dport 5555";
const PER_SECOND: u64 = 1000;
const PORT: u16 = 8082;
const SECOND: Duration = Duration::from_secs(1);
/// A path that does not answer is left within this time without traffic: the longest time between two probes of an idle path in
/// use, and the probes that then follow.
const LEFT: Duration = Duration::from_secs(45);

/// Timeouts of connection tracking: of protocols without ports, and of UDP.
const TIMEOUTS: [&str; 3] = [
    "net.netfilter.nf_conntrack_generic_timeout",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
];

/// A firewall in the gateway of the node `inside`, which drops packets of the node `outside` that belong to no known flow. Dropping
/// this value removes it.
struct Stateful<'a> {
    gateway: &'a Host,
    outside: &'a LabNode,
    inside: &'a LabNode,
    usual: Vec<String>,
}

impl<'a> Stateful<'a> {
    /// Begins to drop packets that satisfy one of these nftables expressions, unless the inside has sent a packet of the flow in the
    /// last seconds.
    fn start(
        lab: &'a Lab,
        [outside, inside]: [&'a LabNode; 2],
        matches: &[&str],
        seconds: u32,
    ) -> Result<Self> {
        let gateway = lab.fabric().gateway(&inside.spec().cloud)?;
        let usual = gateway.enter(|| TIMEOUTS.map(sysctl))?;
        let firewall = Self {
            gateway,
            outside,
            inside,
            usual: usual.into_iter().collect::<Result<_, _>>()?,
        };
        for key in TIMEOUTS {
            gateway.sysctl(key, &seconds.to_string())?;
        }
        let source = outside.public()?;
        let rules: String = matches
            .iter()
            .map(|it| format!("iifname wan ip saddr {source} {it} ct state new counter drop\n"))
            .collect();
        gateway.nft(&format!(
            "table ip stateful {{ chain forward {{ type filter hook forward priority 10;\n{rules} }}; }}"
        ))?;
        Ok(firewall)
    }

    /// Waits until it knows no flow by which probes of the outside would pass.
    fn wait_until_closed(&self, closed: &[&str]) -> Result<()> {
        wait::until("the firewall is closed", || {
            // Longer than its timeout: the probes keep open what is open.
            thread::sleep(SECOND * 3 / 2);
            let rows = probes::probe(self.outside, &self.inside.spec().name)?;
            let answered = closed
                .iter()
                .map(|it| Ok(probes::row(&rows, it)?["answered"].clone()));
            let answered = answered.collect::<Result<Vec<_>>>()?;
            Ok(answered.iter().all(|it| *it == 0))
        })
    }

    fn dropped(&self) -> Result<u64> {
        Ok(counted(self.gateway, "stateful")?.iter().sum())
    }
}

impl Drop for Stateful<'_> {
    fn drop(&mut self) {
        let removed = self.gateway.nft("delete table ip stateful");
        let restored = TIMEOUTS.iter().zip(&self.usual);
        let restored = restored.map(|(key, value)| self.gateway.sysctl(key, value));
        for error in restored.chain([removed]).filter_map(Result::err) {
            eprintln!("removing a stateful firewall: {error:#}");
        }
    }
}

/// While the agent of the inside is dead, nothing is sent there, as between two probes of a path without traffic.
fn a_path_that_a_stateful_firewall_closes_is_left_for_one_that_it_does_not_close(
    lab: &Lab,
) -> Result<()> {
    let (outside, inside) = (lab.pod("a2")?, lab.pod("c1")?);
    let ends = [&**outside.node(), &**inside.node()];
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    let silent = Dead::kill(ends[1])?;
    let firewall = Stateful::start(lab, ends, &[PROTOCOL_4], 1)?;
    firewall.wait_until_closed(&["public-ipip"])?;

    let traffic = Sequence::start(outside, inside, inside.at(7100), PER_SECOND)?;
    wait_for_one_way(ends, Candidate::PublicUdp, FAILOVER * 2)?;
    let further = Sequence::start(outside, inside, inside.at(7101), PER_SECOND)?;
    let tallied = traffic.stop()?;
    eprintln!("a closed path: longest gap {:?}", tallied.longest_gap);
    ensure!(tallied.longest_gap <= FAILOVER, "{tallied:?}");
    further.wait_for(PER_SECOND)?;
    let tallied = further.stop()?;
    ensure!(tallied.lost() == 0, "on the other path: {tallied:?}");
    ensure!(firewall.dropped()? > 0, "the firewall drops nothing");

    // The inside still uses the path: what it sends passes, and opens it.
    silent.restart()?;
    let _server = EchoServer::start(outside, PORT)?;
    tcp_exchange(inside, 0, outside.at(PORT), 1 << 20)?;
    wait_for_one_way([ends[1], ends[0]], Candidate::PublicIpip, Duration::ZERO)
}

fn where_only_a_path_through_a_stateful_firewall_exists_what_begins_inside_works(
    lab: &Lab,
) -> Result<()> {
    let (outside, inside) = (lab.pod("a1")?, lab.pod("c1")?);
    let ends = [&**outside.node(), &**inside.node()];
    wait_for_path(ends, Candidate::PublicIpip, RETURN)?;
    let silent = Dead::kill(ends[1])?;
    let firewall = Stateful::start(lab, ends, &[PROTOCOL_4, UDP], 1)?;
    firewall.wait_until_closed(&["public-ipip", "public-udp"])?;
    let answer = Ping::to(inside.address()).send(outside)?;
    ensure!(answer == Answer::Silence, "what begins outside: {answer:?}");
    silent.restart()?;

    let _servers = [outside, inside].map(|it| EchoServer::start(it, PORT));
    tcp_exchange(inside, 0, outside.at(PORT), 1 << 20)?;
    // The flow is open, so that what begins outside works, too.
    tcp_exchange(outside, 0, inside.at(PORT), 1 << 20)?;
    // By UDP nothing is proven, because the answer to a probe is no reply of its flow.
    let rows = probes::probe(ends[1], &ends[0].spec().name)?;
    for (path, answered) in [("public-ipip", 3), ("public-udp", 0)] {
        let row = probes::row(&rows, path)?;
        ensure!(row["answered"] == answered, "{row:#}");
    }
    ensure!(firewall.dropped()? > 0, "the firewall drops nothing");
    wait_for_path(ends, Candidate::PublicIpip, Duration::ZERO)
}

fn a_stateful_firewall_that_forgets_after_half_a_minute_closes_no_path_in_use(
    lab: &Lab,
) -> Result<()> {
    let (outside, inside) = (lab.pod("a2")?, lab.pod("c1")?);
    let ends = [&**outside.node(), &**inside.node()];
    use_each_way(lab, ends, Candidate::PublicIpip)?;
    let firewall = Stateful::start(lab, ends, &[PROTOCOL_4, UDP], 30)?;
    thread::sleep(SECOND * 100);
    let traffic = Sequence::start(outside, inside, inside.at(7102), PER_SECOND)?;
    traffic.wait_for(PER_SECOND)?;
    let tallied = traffic.stop()?;
    ensure!(tallied.lost() == 0, "after a pause: {tallied:?}");
    wait_for_path(ends, Candidate::PublicIpip, Duration::ZERO)?;
    // The probes by UDP alone.
    ensure!(firewall.dropped()? < 50, "{} dropped", firewall.dropped()?);
    Ok(())
}

fn a_path_that_a_stateful_firewall_closes_is_left_without_traffic(lab: &Lab) -> Result<()> {
    let (outside, inside) = (lab.pod("a2")?, lab.pod("c1")?);
    let ends = [&**outside.node(), &**inside.node()];
    use_each_way(lab, ends, Candidate::PublicIpip)?;
    let silent = Dead::kill(ends[1])?;
    let firewall = Stateful::start(lab, ends, &[PROTOCOL_4], 1)?;
    wait_for_one_way(ends, Candidate::PublicUdp, LEFT)?;
    let traffic = Sequence::start(outside, inside, inside.at(7103), PER_SECOND)?;
    traffic.wait_for(PER_SECOND)?;
    let tallied = traffic.stop()?;
    ensure!(tallied.lost() == 0, "after a pause: {tallied:?}");
    drop(firewall);
    silent.restart()?;
    use_each_way(lab, ends, Candidate::PublicIpip)
}

/// Waits until a node uses this path to its peer.
fn wait_for_one_way([node, peer]: [&LabNode; 2], wanted: Candidate, max: Duration) -> Result<()> {
    let what = format!("{} uses {}", node.spec().name, wanted.name());
    wait::within(max, &what, || Ok(path(node, peer)? == Some(wanted)))
}

/// Waits until both nodes use this path, while there is traffic.
fn use_each_way(lab: &Lab, ends: [&LabNode; 2], wanted: Candidate) -> Result<()> {
    let [one, other] = ends.map(|it| lab.pod(&it.spec().name));
    let _traffic = Traffic::start(one?, other?, 7104, 100)?;
    wait_for_path(ends, wanted, RETURN)
}
