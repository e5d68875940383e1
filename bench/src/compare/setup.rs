//! The setups: all have the same nodes, router and links, but connect their pods in different ways.

mod flannel;
pub mod kube_proxy;
mod manual;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use ipip_datapath::AttachMode;
use ipip_lab::{Lab, Topology};
use ipip_testkit::{
    host::Host,
    offloads::{merge_on_arrival, segment_in_software},
    shell, wait,
};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The network that connects the pods of a setup.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SetupKind {
    /// This project, built from this source tree.
    Ours(Variant),
    /// This project as [`OtherBuild`] describes it.
    Other(Variant),
    /// Routes without encapsulation; pods have the uplinks' MTU.
    Plain,
    /// Routes without encapsulation; pods have the MTU of ours.
    PlainOurMtu,
    /// Kernel VXLAN as flannel configures it, with flannel's rules.
    Vxlan,
    /// Kernel ipip as Calico configures it.
    KernelIpip,
    /// Both pods on one node, on a bridge as the reference plugin configures it.
    Bridge,
}

/// How this project is configured.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Variant {
    /// With its defaults.
    Ipip,
    /// With its defaults, on uplinks that accept larger GSO packets (BIG TCP).
    BigTcp,
    /// With `encapsulation: udp`.
    Udp,
    /// With `encapsulation: udp`, on uplinks that accept larger GSO packets (BIG TCP).
    BigTcpUdp,
    /// With its defaults, both pods on one node.
    OneNode,
}

impl Variant {
    /// Whether the uplinks, and therefore the pods, have larger GSO packets than 64 KiB.
    pub fn is_big_tcp(self) -> bool {
        matches!(self, Self::BigTcp | Self::BigTcpUdp)
    }

    fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::BigTcpUdp)
    }
}

/// `gso_ipv4_max_size` of the uplinks of a BIG TCP setup, in bytes.
const BIG_TCP: u32 = 192 << 10;

/// How the setups of [`SetupKind::Other`] differ from ours.
#[derive(Clone, Debug, Default)]
pub struct OtherBuild {
    /// The folder of its agent and plugin; `None` for those of this build.
    pub programs: Option<PathBuf>,
    /// A bash script that changes the setup after it was built.
    pub script: Option<PathBuf>,
}

impl OtherBuild {
    /// Whether it differs from ours at all.
    pub fn is_wanted(&self) -> bool {
        self.programs.is_some() || self.script.is_some()
    }
}

/// Two pods on two nodes with a router between them, or on one node.
pub struct PodSetup {
    /// The network that connects the pods.
    pub kind: SetupKind,
    // Dropped before `lab`, which removes the namespaces.
    pods: Pods,
    lab: Lab,
}

enum Pods {
    /// The CNI plugin made them, and the lab owns them.
    OfLab,
    /// The benchmark made them.
    Manual([ManualPod; 2]),
}

/// A pod that no CNI plugin made.
struct ManualPod {
    host: Host,
    address: Ipv4Addr,
}

impl PodSetup {
    /// Builds it on uplinks of this MTU; `None` if the kernel lacks a device type that it needs.
    pub fn build(kind: SetupKind, uplink_mtu: u32, other: &OtherBuild) -> Result<Option<Self>> {
        let Some((pods, lab)) =
            connect(kind, uplink_mtu, other).with_context(|| format!("{kind:?}"))?
        else {
            return Ok(None);
        };
        let setup = Self { kind, pods, lab };
        setup.check_placement()?;
        for index in 0..2 {
            // Without TIME_WAIT sockets a client never has to search for a free port; otherwise the rate of
            // connections would be the rate of that search.
            setup
                .pod(index)
                .sysctl("net.ipv4.tcp_max_tw_buckets", "0")?;
        }
        if let (SetupKind::Other(_), Some(script)) = (kind, &other.script) {
            setup.run_script(script)?;
        }
        Ok(Some(setup))
    }

    /// Fails unless the pods are on as many nodes (one or two) as the setup's kind requires.
    fn check_placement(&self) -> Result<()> {
        let [first, second] = [0, 1].map(|index| self.address(index));
        let nodes = self.lab.topology().nodes.iter();
        let ranges = nodes.map(|node| node.pod_cidr);
        let used = ranges.filter(|it| it.contains(first) || it.contains(second));
        let is_one_node = matches!(
            self.kind,
            SetupKind::Ours(Variant::OneNode)
                | SetupKind::Other(Variant::OneNode)
                | SetupKind::Bridge
        );
        let expected = if is_one_node { 1 } else { 2 };
        let found = used.count();
        ensure!(
            found == expected,
            "{:?}: the pods {first} and {second} are on {found} nodes instead of {expected}",
            self.kind
        );
        Ok(())
    }

    /// Runs a script that gets the names of namespaces and of the pods' veths in its environment.
    fn run_script(&self, script: &Path) -> Result<()> {
        let names = |hosts: &[&Host]| -> String {
            let names: Vec<&str> = hosts.iter().map(|host| host.name()).collect();
            names.join(" ")
        };
        let nodes: Vec<&Host> = self.nodes().collect();
        let pods = self.lab.pods();
        let veths: Vec<&str> = pods.iter().map(|pod| pod.veth()).collect::<Result<_>>()?;
        let pod_nodes: Vec<&Host> = pods.iter().map(|pod| &***pod.node()).collect();
        let pods: Vec<&Host> = pods.iter().map(|pod| &**pod).collect();
        let mut command = Command::new("bash");
        command
            .arg("-eu")
            .arg(script)
            .env("NODES", names(&nodes))
            .env("ROUTER", names(&[self.router()?]))
            .env("PODS", names(&pods))
            .env("POD_NODES", names(&pod_nodes))
            .env("VETHS", veths.join(" "));
        shell::printed(&script.display().to_string(), command.output()).map(drop)
    }

    /// The first or the second pod.
    pub fn pod(&self, index: usize) -> &Host {
        match &self.pods {
            Pods::OfLab => &self.lab.pods()[index],
            Pods::Manual(pods) => &pods[index].host,
        }
    }

    /// The address of the first or the second pod.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        match &self.pods {
            Pods::OfLab => self.lab.pods()[index].address(),
            Pods::Manual(pods) => pods[index].address,
        }
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.lab.nodes().iter().map(|node| &***node)
    }

    /// Turns TSO off at nodes and router and GRO on at the nodes: packets of the MTU's size travel between the
    /// nodes, and the receiving node merges them.
    pub fn segment_packets(&self) -> Result<()> {
        for node in self.nodes() {
            // A veth's GRO only takes effect if the veth's peer has TSO off.
            node.enter(|| segment_in_software("eth0"))??;
            node.enter(|| merge_on_arrival("eth0"))??;
        }
        let router = self.router()?;
        for lan in ["lan0", "lan1"] {
            router.enter(|| segment_in_software(lan))??;
        }
        Ok(())
    }

    /// The router between the nodes.
    fn router(&self) -> Result<&Host> {
        let cloud = &self.lab.topology().clouds[0];
        self.lab.fabric().gateway(&cloud.name)
    }
}

fn connect(kind: SetupKind, uplink_mtu: u32, other: &OtherBuild) -> Result<Option<(Pods, Lab)>> {
    let mut topology = Topology::over_a_router();
    topology.uplink_mtu = uplink_mtu;
    for node in &mut topology.nodes {
        node.pods = 1;
    }
    if let SetupKind::Ours(variant) | SetupKind::Other(variant) = kind {
        if variant.is_udp() {
            topology.agent.encapsulation = Some("udp".into());
        }
        if variant.is_big_tcp() {
            topology.uplink_gso_max = Some(BIG_TCP);
        }
        if matches!(kind, SetupKind::Other(_)) {
            topology.programs.clone_from(&other.programs);
        }
        if variant == Variant::OneNode {
            topology.nodes[0].pods = 2;
            topology.nodes[1].pods = 0;
        }
        let mut lab = Lab::build(topology)?;
        lab.start_agents()?;
        lab.start_pods()?;
        wait_until_promoted(&lab)?;
        return Ok(Some((Pods::OfLab, lab)));
    }
    let lab = Lab::build(topology)?;
    let pods = manual::connect(kind, &lab)?;
    Ok(pods.map(|pods| (Pods::Manual(pods), lab)))
}

/// Waits until the programs of all pods are attached by TCX, if the kernel has it. The kernel is asked and not
/// the pins, because the pins of [`SetupKind::Other`] may have another ABI version.
fn wait_until_promoted(lab: &Lab) -> Result<()> {
    if !AttachMode::Auto.is_tcx()? {
        return Ok(());
    }
    for pod in lab.pods() {
        let veth = pod.veth()?;
        let has_programs = |side| -> Result<bool> {
            let (_, programs) = SchedClassifier::query_tcx(veth, side)?;
            Ok(!programs.is_empty())
        };
        let is_promoted = || {
            pod.node().enter(|| {
                Ok(has_programs(TcAttachType::Ingress)? && has_programs(TcAttachType::Egress)?)
            })?
        };
        let what = format!("the programs of {veth} are attached by TCX");
        wait::within(Duration::from_secs(60), &what, is_promoted)
            .with_context(|| pod.node().log_tail(10))?;
    }
    Ok(())
}
