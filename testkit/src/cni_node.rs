//! A node for the CNI plugin alone: it has a datapath whose maps an agent could have filled, but no agent runs.

use crate::{
    host::Host,
    node_maps::NodeMaps,
    scratch::{mount_bpffs, unique_prefix},
    shell,
    trash::{Item, Trash},
};
use anyhow::{Context, Result, ensure};
use ipip_abi::{Addr, Mac, RouteKey};
use ipip_datapath::{AttachMode, Maps, Pins, Programs, load, remove};
use ipip_netlink::{LinkChange, Netlink, Veth};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// The folder of the reference plugins on Debian and Ubuntu.
pub const PLUGINS: &str = "/usr/lib/cni";
/// The MTU of its pods.
pub const POD_MTU: u32 = 1480;
/// `gso_ipv4_max_size` of its pods, in bytes.
pub const POD_GSO_MAX: u32 = 192 << 10;
/// The node's own address.
const OWN: Addr = Addr([10, 0, 0, 11]);

/// A node; also the [`Host`] of its namespace. Dropping it removes the node and its pods.
#[derive(Debug)]
pub struct CniNode {
    host: Host,
    folder: PathBuf,
    pins: Pins,
    trash: Trash,
}

impl Deref for CniNode {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl CniNode {
    /// Makes a node whose datapath is ready.
    pub fn ready() -> Result<Self> {
        let node = Self::bare()?;
        node.make_ready()?;
        Ok(node)
    }

    /// Makes a node on which no agent has run.
    pub fn bare() -> Result<Self> {
        mount_bpffs()?;
        let trash = Trash::default();
        let prefix = unique_prefix();
        let folder = std::env::temp_dir().join(&prefix);
        let pins = Path::new("/sys/fs/bpf").join(&prefix);
        trash.add(Item::Folder(folder.clone()));
        trash.add(Item::Folder(pins.clone()));
        fs::create_dir_all(&folder)?;
        Ok(Self {
            host: Host::create(prefix, &trash)?,
            folder,
            pins: Pins::new(pins),
            trash,
        })
    }

    /// Loads the datapath, and fills the maps as an agent without peers does.
    pub fn make_ready(&self) -> Result<()> {
        self.load()?;
        let (index, mac) = self.enter(|| -> Result<_> {
            let mut netlink = Netlink::open()?;
            netlink.add_veth(&Veth {
                name: "ipip0",
                peer_name: "ipip0-peer",
                ..Veth::default()
            })?;
            let up = LinkChange {
                up: Some(true),
                ..LinkChange::default()
            };
            let peer = netlink.link("ipip0-peer")?.context("no peer of ipip0")?;
            netlink.change_link(peer.index, &up)?;
            let link = netlink.link("ipip0")?.context("no ipip0")?;
            netlink.change_link(link.index, &up)?;
            Programs::open(&self.pins, AttachMode::Auto)?.attach_host("ipip0")?;
            Ok((link.index, link.mac))
        })??;
        NodeMaps::new("cni-node", OWN, RouteKey::new(Addr([10, 42, 0, 0]), 16))
            .configure(|config| {
                config.ipip0_ifindex = index;
                config.ipip0_mac = Mac(mac);
                config.pod_mtu = POD_MTU;
                config.pod_gso_max = POD_GSO_MAX;
            })
            .write(&mut self.maps()?)
    }

    /// Loads the datapath or adopts it, as an agent does when it starts.
    pub fn load(&self) -> Result<()> {
        self.enter(|| load(&self.pins, AttachMode::Auto))??;
        Ok(())
    }

    /// Its pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Its maps.
    pub fn maps(&self) -> Result<Maps> {
        Ok(Maps::open(&self.pins)?)
    }

    /// Its folder: `ipam/` has the leases, `run/` the plugin's lock.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its list of objects to remove.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// host-local's leases.
    pub fn leases(&self) -> PathBuf {
        self.folder.join("ipam/ipip")
    }

    /// The plugin's configuration in this version.
    pub fn conf(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "ipip",
            "type": "ipip",
            "pinRoot": self.pins.root(),
            "runDir": self.folder.join("run"),
            "ipam": {
                "type": "host-local",
                "dataDir": self.folder.join("ipam"),
                "ranges": [[{"subnet": "10.42.0.0/16"}]],
            },
        })
    }

    /// A namespace for a pod.
    pub fn pod(&self, name: &str) -> Result<Host> {
        Host::create(format!("{}-{name}", self.name()), &self.trash)
    }

    /// Prepares a call of the plugin for a pod's `eth0`.
    pub fn call(&self, verb: &str, container_id: &str, pod: Option<&Host>) -> Call<'_> {
        Call {
            node: self,
            plugin: "ipip".into(),
            conf: self.conf("1.0.0"),
            env: vec![
                ("CNI_COMMAND", verb.into()),
                ("CNI_CONTAINERID", container_id.into()),
                ("CNI_IFNAME", "eth0".into()),
                ("CNI_PATH", PLUGINS.into()),
                ("CNI_NETNS", pod.map(Host::netns_path).unwrap_or_default()),
                ("PATH", std::env::var("PATH").unwrap_or_default()),
            ],
        }
    }

    /// ADDs a pod's `eth0`, and returns the result. Fails if the plugin does.
    pub fn add(&self, container_id: &str, pod: &Host) -> Result<Value> {
        self.call("ADD", container_id, Some(pod)).run()?.success()
    }

    /// DELs a pod's `eth0` with the container ID alone. Fails if the plugin does.
    pub fn del(&self, container_id: &str) -> Result<()> {
        let call = self.call("DEL", container_id, None);
        call.run()?.success().map(drop)
    }

    /// Everything that the plugin can leave on a node: links, map entries, pins, leases; sorted.
    pub fn traces(&self) -> Result<Vec<String>> {
        let links = self.enter(|| -> Result<_> { Ok(Netlink::open()?.links()?) })??;
        let links = links.iter().filter(|link| link.name.starts_with("pod"));
        let mut traces: Vec<String> = links.map(|link| format!("link {}", link.name)).collect();
        if self.pins.exist() {
            for entry in self.maps()?.pods.iter() {
                traces.push(format!("entry {}", entry?.0));
            }
        }
        for (what, folder) in [("pin", self.pins.links()), ("lease", self.leases())] {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.starts_with("pod") || name.starts_with("10.") {
                    traces.push(format!("{what} {name}"));
                }
            }
        }
        traces.sort();
        Ok(traces)
    }

    /// Fails if the plugin has left anything on the node.
    pub fn expect_no_trace(&self) -> Result<()> {
        let traces = self.traces()?;
        ensure!(traces.is_empty(), "left behind: {traces:?}");
        Ok(())
    }
}

impl Drop for CniNode {
    fn drop(&mut self) {
        if !self.trash.settled()
            && let Ok(Err(error)) = self.enter(|| remove(&self.pins))
        {
            eprintln!("removing the datapath of {}: {error}", self.name());
        }
        self.trash.empty();
    }
}

/// A call of a plugin. Tests change it before they run it.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    node: &'a CniNode,
    /// Name of one of our programs, or a path.
    pub plugin: String,
    /// Its standard input.
    pub conf: Value,
    /// Its environment.
    pub env: Vec<(&'static str, String)>,
}

/// The result of a call.
#[derive(Clone, Debug)]
pub struct CallResult {
    /// Whether it exited with 0.
    pub success: bool,
    /// Its output; null if it printed nothing.
    pub printed: Value,
}

impl Call<'_> {
    /// Sets a field of the configuration.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.conf[field] = value;
        self
    }

    /// Sets a variable. An empty value removes it.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
        self
    }

    /// The command, with a pipe as its standard input and output.
    pub fn command(&self) -> Result<Command> {
        let path = if self.plugin.contains('/') {
            PathBuf::from(&self.plugin)
        } else {
            shell::own_program(&self.plugin)?
        };
        let mut command = Command::new(path);
        command.env_clear();
        let env = self.env.iter().filter(|(_, value)| !value.is_empty());
        command.envs(env.map(|(name, value)| (*name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Starts the plugin, and writes its configuration.
    pub fn start(&self) -> Result<Child> {
        let mut command = self.command()?;
        let mut child = self.node.enter(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that fails early does not read it.
            let _ = stdin.write_all(self.conf.to_string().as_bytes());
        }
        Ok(child)
    }

    /// Runs the plugin to its end.
    pub fn run(&self) -> Result<CallResult> {
        CallResult::of(&self.start()?.wait_with_output()?)
    }
}

impl CallResult {
    /// Reads the output and the exit status of a plugin.
    pub fn of(output: &Output) -> Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout);
        let printed = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?,
        };
        Ok(Self {
            success: output.status.success(),
            printed,
        })
    }

    /// Returns the output of a call that succeeded, and fails otherwise.
    pub fn success(self) -> Result<Value> {
        ensure!(self.success, "the plugin failed: {}", self.printed);
        Ok(self.printed)
    }

    /// Expects that the call failed with this code, with all fields of an error, and with each of these words.
    pub fn failure(&self, code: u64, words: &[&str]) -> Result<()> {
        let error = &self.printed;
        ensure!(
            !self.success && error["code"] == code,
            "the code is not {code}: {error}"
        );
        for field in ["cniVersion", "msg", "details"] {
            let text = error[field].as_str().unwrap_or_default();
            ensure!(!text.is_empty(), "no {field}: {error}");
        }
        let text = format!("{} {}", error["msg"], error["details"]);
        for word in words {
            ensure!(text.contains(word), "{word:?} is not in: {text}");
        }
        Ok(())
    }
}
