//! A pod: a namespace that the real CNI plugin has connected to its node.

use crate::{
    host::Host,
    node::Node,
    shell,
    trash::{Item, Trash},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    ops::Deref,
    process::Command,
    sync::Arc,
};

/// Where the delegated IPAM plugin lies on Debian and Ubuntu.
const IPAM_PLUGINS: &str = "/usr/lib/cni";

/// A running pod; also the [`Host`] of its namespace. Dropping it deletes it.
#[derive(Debug)]
pub struct Pod {
    host: Host,
    node: Arc<Node>,
    address: Ipv4Addr,
    result: Value,
    trash: Trash,
}

impl Deref for Pod {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Pod {
    /// Makes the namespace and has the plugin ADD it to `node`.
    pub fn start(node: &Arc<Node>, name: &str, trash: &Trash) -> Result<Self> {
        let host = Host::create(format!("{}-{name}", node.name()), trash)?;
        let printed = plugin(node, &host, "ADD", None)
            .with_context(|| format!("cannot start the pod {name} on {}", node.name()))?;
        let result: Value =
            serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))?;
        let address = result["ips"][0]["address"]
            .as_str()
            .and_then(|address| address.split('/').next())
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("ADD printed no address: {printed}"))?;
        Ok(Self {
            host,
            node: node.clone(),
            address,
            result,
            trash: trash.clone(),
        })
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A port of it.
    pub fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.address, port)
    }

    /// The node it runs on.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Host side of its veth.
    pub fn veth(&self) -> Result<&str> {
        self.result["interfaces"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty())
            .and_then(|interface| interface["name"].as_str())
            .with_context(|| format!("ADD printed no host interface: {}", self.result))
    }

    /// Has the plugin CHECK it.
    pub fn check(&self) -> Result<()> {
        plugin(&self.node, &self.host, "CHECK", Some(&self.result)).map(drop)
    }

    /// Has the plugin DEL it, then removes the namespace.
    pub fn delete(self) -> Result<()> {
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        let item = Item::Namespace(self.host.name().into());
        if self.trash.settled() {
            return Ok(());
        }
        let deleted = plugin(&self.node, &self.host, "DEL", Some(&self.result));
        if std::path::Path::new(&self.host.netns_path()).exists() {
            shell::run(&format!("ip netns delete {}", self.host.name()))?;
        }
        self.trash.forget(&item);
        deleted.map(drop)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let gone = !std::path::Path::new(&self.host.netns_path()).exists();
        if !gone && let Err(error) = self.remove() {
            eprintln!("deleting the pod {}: {error:#}", self.host.name());
        }
    }
}

/// Runs the CNI plugin as a container runtime does.
fn plugin(node: &Node, pod: &Host, command: &str, previous: Option<&Value>) -> Result<String> {
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
    if let Some(previous) = previous {
        configuration["prevResult"] = previous.clone();
    }
    let mut plugin = Command::new(shell::own_program("ipip")?);
    plugin
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod.name())
        .env("CNI_NETNS", pod.netns_path())
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_PATH",
            format!("{IPAM_PLUGINS}:{}", shell::bin_dir()?.display()),
        );
    node.enter(|| shell::run_with_input(&mut plugin, &configuration.to_string()))?
}
