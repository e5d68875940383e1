//! A pod: a namespace that the real CNI plugin has connected to its node. The reference plugin `bandwidth`,
//! chained after ours, may limit it.

use crate::node::LabNode;
use anyhow::{Context, Result};
use ipip_testkit::{
    host::Host,
    shell,
    trash::{Item, Trash},
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// The folder of the IPAM plugin on Debian and Ubuntu.
const IPAM_PLUGINS: &str = "/usr/lib/cni";

/// A running pod; also the [`Host`] of its namespace. Dropping it deletes it.
#[derive(Debug)]
pub struct LabPod {
    host: Host,
    node: Arc<LabNode>,
    address: Ipv4Addr,
    result: Value,
    limits: Option<Limits>,
    trash: Trash,
}

/// Limits of a pod's bandwidth.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Path of the reference plugin `bandwidth`, which enforces them.
    pub plugin: PathBuf,
    /// Bits per second that the pod receives; 0 is no limit.
    pub ingress: u64,
    /// Bits per second that the pod sends; 0 is no limit.
    pub egress: u64,
    /// Bits of a burst, in each direction.
    pub burst: u64,
}

impl Limits {
    fn runtime_config(&self) -> Value {
        let burst = |rate| if rate == 0 { 0 } else { self.burst };
        json!({"bandwidth": {
            "ingressRate": self.ingress,
            "ingressBurst": burst(self.ingress),
            "egressRate": self.egress,
            "egressBurst": burst(self.egress),
        }})
    }
}

impl Deref for LabPod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl LabPod {
    /// Makes the namespace, and ADDs it to `node`.
    pub fn start(node: &Arc<LabNode>, name: &str, trash: &Trash) -> Result<Self> {
        Self::start_with(node, name, None, trash)
    }

    /// Makes the namespace, and ADDs it to `node`, with limited bandwidth if there are `limits`.
    pub fn start_with(
        node: &Arc<LabNode>,
        name: &str,
        limits: Option<Limits>,
        trash: &Trash,
    ) -> Result<Self> {
        let host = Host::create(format!("{}-{name}", node.name()), trash)?;
        let mut pod = Self {
            host,
            node: node.clone(),
            address: Ipv4Addr::UNSPECIFIED,
            result: Value::Null,
            limits,
            trash: trash.clone(),
        };
        let started = pod.add();
        started.with_context(|| format!("cannot start the pod {name} on {}", node.name()))?;
        Ok(pod)
    }

    fn add(&mut self) -> Result<()> {
        for plugin in self.chain()? {
            let printed = self.run(&plugin, "ADD")?;
            self.result =
                serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))?;
        }
        self.address = self.result["ips"][0]["address"]
            .as_str()
            .and_then(|address| address.split('/').next())
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("ADD printed no address: {}", self.result))?;
        Ok(())
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A port of the pod.
    pub fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }

    /// The node it runs on.
    pub fn node(&self) -> &Arc<LabNode> {
        &self.node
    }

    /// Name of its veth on the node.
    pub fn veth(&self) -> Result<&str> {
        self.result["interfaces"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
            .and_then(|interface| interface["name"].as_str())
            .with_context(|| format!("ADD printed no host interface: {}", self.result))
    }

    /// Runs CHECK for the pod.
    pub fn check(&self) -> Result<()> {
        for plugin in self.chain()? {
            self.run(&plugin, "CHECK")?;
        }
        Ok(())
    }

    /// DELs the pod, then removes the namespace.
    pub fn delete(self) -> Result<()> {
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        let item = Item::Namespace(self.host.name().into());
        if self.trash.settled() {
            return Ok(());
        }
        let mut chain = self.chain()?;
        chain.reverse();
        let deleted: Vec<_> = chain.iter().map(|it| self.run(it, "DEL")).collect();
        if Path::new(&self.host.netns_path()).exists() {
            shell::run(&format!("ip netns delete {}", self.host.name()))?;
        }
        self.trash.forget(&item);
        deleted.into_iter().try_for_each(|it| it.map(drop))
    }

    /// The plugins, in the order of ADD.
    fn chain(&self) -> Result<Vec<PathBuf>> {
        let limits = self.limits.as_ref().map(|limits| limits.plugin.clone());
        Ok([self.node.program("ipip")?]
            .into_iter()
            .chain(limits)
            .collect())
    }

    /// Runs a plugin as a container runtime does.
    fn run(&self, plugin: &Path, verb: &str) -> Result<String> {
        let node = &self.node;
        let mut configuration = json!({
            "cniVersion": "1.0.0",
            "name": "ipip",
            "type": "ipip",
            "pinRoot": node.pins().root(),
            "attach": node.attach_mode(),
            "ipam": {
                "type": "host-local",
                "dataDir": node.folder().join("ipam"),
                "ranges": [[{ "subnet": node.spec().pod_cidr }]],
            },
        });
        if let Some(limits) = &self.limits {
            configuration["runtimeConfig"] = limits.runtime_config();
        }
        if !self.result.is_null() {
            configuration["prevResult"] = self.result.clone();
        }
        let mut command = Command::new(plugin);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.host.name())
            .env("CNI_NETNS", self.host.netns_path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_PATH",
                format!("{IPAM_PLUGINS}:{}", shell::bin_dir()?.display()),
            );
        node.enter(|| shell::run_with_input(&mut command, &configuration.to_string()))?
    }
}

impl Drop for LabPod {
    fn drop(&mut self) {
        let gone = !Path::new(&self.host.netns_path()).exists();
        if !gone && let Err(error) = self.remove() {
            eprintln!("deleting the pod {}: {error:#}", self.host.name());
        }
    }
}
