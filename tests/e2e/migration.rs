//! A cluster migrates from flannel's VXLAN node by node, as `docs/migration.md` describes: flannel stays on every
//! node until the last one has an agent. Here its interfaces, routes and pods are made by hand, as flannel and the
//! plugin `bridge` make them.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, LabNode, LabPod, Topology, topology::NodeSpec};
use ipip_testkit::{
    harness::Test, host::Host, ping::Ping, sequence::Sequence, shell, tests, trash::Trash, wait,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
};

pub const TESTS: &[Test<Lab>] =
    tests![pods_reach_each_other_after_each_step_of_a_migration_from_flannel];

const NODES: [u8; 3] = [1, 2, 3];
const PER_SECOND: u64 = 200;

/// Three nodes of one realm. No agent runs yet.
pub fn start() -> Result<Lab> {
    let mut topology = Topology::one_realm();
    let third = NodeSpec::new("a3", "cloud-a", "10.0.0.13", "203.0.113.13", 3);
    topology.nodes.push(third);
    let lab = Lab::build(topology)?;
    lab.write_inventory(&[])?;
    Ok(lab)
}

/// A pod of flannel's network: a port of the bridge `cni0`.
struct FlannelPod<'a> {
    host: Host,
    node: &'a LabNode,
    address: Ipv4Addr,
}

impl<'a> FlannelPod<'a> {
    fn start(node: &'a LabNode, number: u8, trash: &Trash) -> Result<Self> {
        let host = Host::create(format!("{}-flannel", node.name()), trash)?;
        node.ip(&format!(
            "link add veth0 type veth peer name eth0 netns {}",
            host.name()
        ))?;
        node.ip("link set veth0 master cni0 up")?;
        host.ip(&format!("address add 10.42.{number}.99/24 dev eth0"))?;
        host.ip("link set eth0 up")?;
        host.ip(&format!("route add default via 10.42.{number}.1"))?;
        Ok(Self {
            host,
            node,
            address: Ipv4Addr::new(10, 42, number, 99),
        })
    }

    fn delete(self) -> Result<()> {
        self.node.ip("link delete veth0").map(drop)
    }
}

/// Sets up a node as flannel does.
fn run_flannel(lab: &Lab, number: u8) -> Result<()> {
    let node = lab.node(&format!("a{number}"))?;
    let own = node.internal_ip();
    node.sysctl("net.ipv4.ip_forward", "1")?;
    for command in [
        format!(
            "link add flannel.1 address {} type vxlan id 1 local {own} dev eth0 dstport 8472 nolearning",
            mac(number)
        ),
        format!("address add 10.42.{number}.0/32 dev flannel.1"),
        "link set flannel.1 up".into(),
        "link add cni0 type bridge".into(),
        format!("address add 10.42.{number}.1/24 dev cni0"),
        "link set cni0 up".into(),
    ] {
        node.ip(&command)?;
    }
    for other in NODES.into_iter().filter(|it| *it != number) {
        let (underlay, mac) = (lab.node(&format!("a{other}"))?.internal_ip(), mac(other));
        let vtep = format!("10.42.{other}.0");
        node.ip(&format!(
            "route replace {vtep}/24 via {vtep} dev flannel.1 onlink"
        ))?;
        node.ip(&format!(
            "neighbour add {vtep} lladdr {mac} dev flannel.1 nud permanent"
        ))?;
        let forwarding = format!("fdb append {mac} dev flannel.1 dst {underlay}");
        let mut bridge = Command::new("bridge");
        let output = node.output(bridge.args(forwarding.split(' ')))?;
        shell::printed("bridge", Ok(output))?;
    }
    node.nft(&format!(
        "table ip flannel-ipv4 {{
  chain postrtg {{
    type nat hook postrouting priority srcnat;
    ip saddr 10.42.0.0/16 ip daddr 10.42.0.0/16 return
    ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade
    ip saddr != 10.42.0.0/16 ip daddr 10.42.{number}.0/24 return
    ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade
  }}
}}
"
    ))
}

fn mac(number: u8) -> String {
    format!("02:fe:00:00:00:0{number}")
}

fn pods_reach_each_other_after_each_step_of_a_migration_from_flannel(lab: &Lab) -> Result<()> {
    for number in NODES {
        run_flannel(lab, number)?;
    }
    let trash = lab.trash().clone();
    let mut flannel_pods = Vec::new();
    for number in NODES {
        let node = lab.node(&format!("a{number}"))?;
        flannel_pods.push(FlannelPod::start(node, number, &trash)?);
    }
    reach_each_other(
        lab,
        &flannel_pods
            .iter()
            .map(|it| (&it.host, it.address))
            .collect::<Vec<_>>(),
    )
    .context("before the migration")?;

    let inventory = lab.topology().inventory();
    let mut pods: Vec<LabPod> = Vec::new();
    for step in 0..NODES.len() {
        let name = format!("a{}", step + 1);
        // What happens between nodes that the step does not touch.
        let stream = match (pods.first(), &flannel_pods[1..]) {
            (Some(from), [.., to]) => {
                let address = SocketAddrV4::new(to.address, 7200);
                Some(Sequence::start(from, &to.host, address, PER_SECOND)?)
            }
            _ => None,
        };
        // The node is drained: its pods are deleted. Then its agent starts.
        let drained = flannel_pods.remove(0);
        drained.delete()?;
        lab.write_inventory(&inventory[..=step])?;
        let node = lab.node(&name)?;
        node.restart_agent()?;
        for peer in &inventory[..step] {
            let peer = lab.node(&peer.name)?;
            wait::until("the nodes with agents are peers", || {
                Ok(peer.peers()?.contains_key(&name))
            })?;
        }
        pods.push(lab.start_pod(&name, "migrated")?);
        let mut all: Vec<(&Host, Ipv4Addr)> = Vec::new();
        all.extend(pods.iter().map(|pod| (&**pod, pod.address())));
        all.extend(flannel_pods.iter().map(|pod| (&pod.host, pod.address)));
        reach_each_other(lab, &all).with_context(|| format!("after the migration of {name}"))?;
        if let Some(stream) = stream {
            let tallied = stream.stop()?;
            ensure!(
                tallied.lost() == 0,
                "the migration of {name} cost {tallied:?}"
            );
        }
    }
    let sent = lab.node("a1")?.traffic("a2")?.tx_packets;
    ensure!(sent > 0, "a1 and a2 still use flannel");

    for number in NODES {
        let node = lab.node(&format!("a{number}"))?;
        node.ip("link delete flannel.1")?;
        node.ip("link delete cni0")?;
        node.nft("delete table ip flannel-ipv4")?;
    }
    let all: Vec<(&Host, Ipv4Addr)> = pods.iter().map(|pod| (&**pod, pod.address())).collect();
    reach_each_other(lab, &all).context("without flannel")?;
    pods.into_iter().try_for_each(LabPod::delete)
}

/// Every pod reaches every other, and every node reaches every pod.
fn reach_each_other(lab: &Lab, pods: &[(&Host, Ipv4Addr)]) -> Result<()> {
    for (to, address) in pods {
        for (from, _) in pods.iter().filter(|(from, _)| from.name() != to.name()) {
            Ping::to(*address).reply_ttl(from)?;
        }
        for node in lab.nodes() {
            Ping::to(*address).reply_ttl(node)?;
        }
    }
    Ok(())
}
