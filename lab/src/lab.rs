//! A whole lab: clouds, nodes with agents, pods. Dropping it removes all of it.

use crate::{
    fabric::Fabric,
    inventory::{self, InventoryNode},
    node::LabNode,
    pod::{LabPod, Limits},
    topology::Topology,
};
use anyhow::{Context, Result, bail};
use ipip_testkit::{
    capture::{Capture, CaptureDirection},
    scratch::{BPFFS, mount_bpffs, unique_prefix},
    trash::{Item, Trash},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Clouds with running nodes and pods.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    folder: PathBuf,
    topology: Topology,
    fabric: Fabric,
    nodes: Vec<Arc<LabNode>>,
    pods: Vec<LabPod>,
    trash: Trash,
}

impl Lab {
    /// Builds `topology`, starts every agent, waits until all are ready, starts the pods, and waits until the
    /// agents have promoted every pod.
    pub fn start(topology: Topology) -> Result<Self> {
        let mut lab = Self::build(topology)?;
        lab.start_agents()?;
        lab.start_pods()?;
        lab.nodes.iter().try_for_each(|node| node.wait_promoted())?;
        Ok(lab)
    }

    /// Builds the machines and the network, and writes all files. No agent runs yet.
    pub fn build(topology: Topology) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and loads eBPF; remedy: run it as root");
        }
        mount_bpffs()?;
        let trash = Trash::default();
        let prefix = unique_prefix();
        let folder = std::env::temp_dir().join(&prefix);
        let pins = Path::new(BPFFS).join(&prefix);
        let built = Self::assemble(&prefix, &folder, &pins, topology, &trash);
        if built.is_err() {
            trash.empty();
        }
        built
    }

    fn assemble(
        prefix: &str,
        folder: &Path,
        pins: &Path,
        topology: Topology,
        trash: &Trash,
    ) -> Result<Self> {
        for path in [folder, pins] {
            trash.add(Item::Folder(path.into()));
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        inventory::write(&folder.join("inventory.yaml"), &topology.inventory())?;
        let fabric = Fabric::build(prefix, &topology, trash)?;
        let mut nodes = Vec::new();
        for spec in &topology.nodes {
            let host = fabric.add_node(prefix, &topology, spec, trash)?;
            let root = pins.join(&spec.name);
            let node = LabNode::new(host, spec.clone(), &topology, folder, root, trash)?;
            nodes.push(Arc::new(node));
        }
        Ok(Self {
            prefix: prefix.into(),
            folder: folder.into(),
            topology,
            fabric,
            nodes,
            pods: Vec::new(),
            trash: trash.clone(),
        })
    }

    /// Starts all agents, and then waits until each is ready.
    pub fn start_agents(&self) -> Result<()> {
        for node in &self.nodes {
            node.start_agent()?;
        }
        for node in &self.nodes {
            node.wait_ready(Duration::from_secs(120))?;
        }
        Ok(())
    }

    /// Starts the pods of the topology.
    pub fn start_pods(&mut self) -> Result<()> {
        for node in &self.nodes {
            for number in 1..=node.spec().pods {
                let pod = LabPod::start(node, &format!("p{number}"), &self.trash)?;
                self.pods.push(pod);
            }
        }
        Ok(())
    }

    /// Starts one more pod, which the caller owns.
    pub fn start_pod(&self, node: &str, name: &str) -> Result<LabPod> {
        LabPod::start(self.node(node)?, name, &self.trash)
    }

    /// Starts one more pod with limited bandwidth, which the caller owns.
    pub fn start_limited_pod(&self, node: &str, name: &str, limits: Limits) -> Result<LabPod> {
        LabPod::start_with(self.node(node)?, name, Some(limits), &self.trash)
    }

    /// The prefix of all its names: `ipip-ID`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The folder of the inventory, configurations and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The topology it was built from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The network between the nodes.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// Its list of objects to remove.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Arc<LabNode>] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Arc<LabNode>> {
        self.nodes
            .iter()
            .find(|node| node.spec().name == name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// All pods of the topology.
    pub fn pods(&self) -> &[LabPod] {
        &self.pods
    }

    /// The first pod of a node.
    pub fn pod(&self, node: &str) -> Result<&LabPod> {
        self.nth_pod(node, 0)
    }

    /// A pod of a node, counted from 0.
    pub fn nth_pod(&self, node: &str, number: usize) -> Result<&LabPod> {
        self.pods
            .iter()
            .filter(|pod| pod.node().spec().name == node)
            .nth(number)
            .with_context(|| format!("{node} has no pod {number}"))
    }

    /// Replaces the inventory of all agents.
    pub fn write_inventory(&self, nodes: &[InventoryNode]) -> Result<()> {
        inventory::write(&self.inventory_path(), nodes)
    }

    /// The inventory file of all agents.
    pub fn inventory_path(&self) -> PathBuf {
        self.folder.join("inventory.yaml")
    }

    /// Captures all packets between a cloud and the Internet, on the Internet's side of the cloud's gateway.
    pub fn capture_on_internet(&self, cloud: &str) -> Result<Capture> {
        let port = format!("to-{cloud}");
        Capture::start(&self.fabric.internet, &port, CaptureDirection::Both)
    }

    /// Diagnostics for a failed test: the end of each agent's log, and each node's drop counters.
    pub fn report(&self) -> String {
        let mut report = String::new();
        for node in &self.nodes {
            let drops = match node.ipipctl(&["drops"]) {
                Ok(output) => {
                    String::from_utf8_lossy(&output.stdout).into_owned()
                        + &String::from_utf8_lossy(&output.stderr)
                }
                Err(error) => format!("{error:#}\n"),
            };
            report += &format!(
                "--- {}: log of its agent\n{}\n--- {}: ipipctl drops\n{drops}",
                node.name(),
                node.log_tail(15),
                node.name(),
            );
        }
        report
    }

    /// Leaves everything running when this is dropped.
    pub fn keep(&self) {
        self.trash.keep();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.trash.empty();
    }
}
