//! One node with a datapath but without an agent, for the CNI plugin alone: the maps hold what an
//! agent would write, and nothing runs.

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

/// Where Debian and Ubuntu have the reference plugins.
pub const PLUGINS: &str = "/usr/lib/cni";
/// The MTU that its pods get.
pub const POD_MTU: u32 = 1480;
/// Bytes of the largest packets that its pods hand over to be segmented.
pub const POD_GSO_MAX: u32 = 192 << 10;
/// The node's own address.
const OWN: Addr = Addr([10, 0, 0, 11]);

/// The node; also the [`Host`] of its namespace. Dropping it removes it, its pods' too.
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
    /// A node whose datapath is ready.
    pub fn ready() -> Result<Self> {
        let node = Self::bare()?;
        node.make_ready()?;
        Ok(node)
    }

    /// A node on which no agent ever ran.
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

    /// Loads the datapath and writes what an agent without peers would write.
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

    /// Loads the datapath, or adopts it, as a starting agent does.
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

    /// What it will remove.
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

    /// A call of the plugin for a pod's `eth0`.
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

    /// ADD of a pod's `eth0`, which must succeed.
    pub fn add(&self, container_id: &str, pod: &Host) -> Result<Value> {
        self.call("ADD", container_id, Some(pod)).run()?.success()
    }

    /// DEL of a pod's `eth0` without anything but its ID, which must succeed.
    pub fn del(&self, container_id: &str) -> Result<()> {
        let call = self.call("DEL", container_id, None);
        call.run()?.success().map(drop)
    }

    /// All that the plugin ever leaves on a node: links, map entries, pins, leases; sorted.
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

    /// Fails if the plugin has left anything.
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

/// One call of a plugin, to be changed before it is run.
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

/// How a plugin ended.
#[derive(Clone, Debug)]
pub struct CallResult {
    /// Whether it exited with 0.
    pub success: bool,
    /// What it printed; null if nothing.
    pub printed: Value,
}

impl Call<'_> {
    /// Sets a field of the configuration.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.conf[field] = value;
        self
    }

    /// Sets a variable, or removes it where the value is empty.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.retain(|(known, _)| *known != name);
        self.env.push((name, value.into()));
        self
    }

    /// The command, with nothing on its standard input yet.
    pub fn command(&self) -> Result<Command> {
        let path = match self.plugin.contains('/') {
            true => PathBuf::from(&self.plugin),
            false => shell::own_program(&self.plugin)?,
        };
        let mut command = Command::new(path);
        command.env_clear();
        let env = self.env.iter().filter(|(_, value)| !value.is_empty());
        command.envs(env.map(|(name, value)| (*name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(command)
    }

    /// Starts it and hands it its configuration.
    pub fn start(&self) -> Result<Child> {
        let mut command = self.command()?;
        let mut child = self.node.enter(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early need not read.
            let _ = stdin.write_all(self.conf.to_string().as_bytes());
        }
        Ok(child)
    }

    /// Runs it to its end.
    pub fn run(&self) -> Result<CallResult> {
        CallResult::of(&self.start()?.wait_with_output()?)
    }
}

impl CallResult {
    /// From what a plugin printed and how it exited.
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

    /// What it printed, if it succeeded.
    pub fn success(self) -> Result<Value> {
        ensure!(self.success, "the plugin failed: {}", self.printed);
        Ok(self.printed)
    }

    /// Asserts that it failed with this code, with all that an error must have, and with each of
    /// these words in it.
    pub fn failure(&self, code: u64, words: &[&str]) -> Result<()> {
        let error = &self.printed;
        ensure!(
            !self.success && error["code"] == code,
            "not {code}: {error}"
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
