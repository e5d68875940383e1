//! A node with a real agent, and namespaces in which a test starts a container runtime.

use anyhow::{Context, Result, ensure};
use ipip_datapath::{Maps, Pins};
use ipip_lab::kubernetes::{Machine, Tools};
use ipip_netlink::Netlink;
use ipip_testkit::{
    host::Host,
    shell,
    trash::{Item, Trash},
    wait,
};
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// The reference plugins that the agent installs.
const REFERENCE: [&str; 4] = ["host-local", "portmap", "bandwidth", "loopback"];

const INVENTORY: &str = "nodes:
  - name: n1
    internalIPs: [10.0.0.11]
    podCIDRs: [10.42.0.0/16]
";

/// Where the runtime looks for CNI files.
#[derive(Clone, Copy)]
pub struct CniFolders {
    pub bin: &'static str,
    pub conf: &'static str,
}

const USUAL: CniFolders = CniFolders {
    bin: "/opt/cni/bin",
    conf: "/etc/cni/net.d",
};

/// A node. Dropping this value removes the node.
pub struct RuntimeNode {
    pub machine: Machine,
    pub tools: Tools,
    pub cni: CniFolders,
    folder: PathBuf,
    trash: Trash,
}

impl RuntimeNode {
    /// Starts a node whose agent has written the list of plugins. No runtime runs yet.
    pub fn start() -> Result<Self> {
        Self::start_with(USUAL)
    }

    /// Like [`Self::start`], with these folders.
    pub fn start_with(cni: CniFolders) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipip-{}r{number}", std::process::id());
        let trash = Trash::default();
        let started = Self::build(&name, cni, &trash);
        if started.is_err() {
            trash.empty();
        }
        let node = started?;
        node.start_agent().map(|()| node)
    }

    fn build(name: &str, cni: CniFolders, trash: &Trash) -> Result<Self> {
        let tools = Tools::find_some(&["containerd", "cnitool", "host-local"])?;
        let folder = std::env::temp_dir().join(name);
        trash.add(Item::Folder(folder.clone()));
        fs::create_dir_all(folder.join("plugins"))?;
        for plugin in REFERENCE {
            fs::copy(tools.program(plugin), folder.join("plugins").join(plugin))?;
        }
        fs::copy(shell::own_program("ipip")?, folder.join("plugins/ipip"))?;
        let host = Host::create(name.into(), trash)?;
        host.ip("link add eth0 type veth peer name far")?;
        host.ip("address add 10.0.0.11/24 dev eth0")?;
        host.ip("link set eth0 up")?;
        host.ip("link set far up")?;
        let machine = Machine::start(host, name, folder.join("machine"), &tools, trash)?;
        Ok(Self {
            machine,
            tools,
            cni,
            folder,
            trash: trash.clone(),
        })
    }

    /// The agent with its arguments.
    pub fn agent(&self) -> Result<Command> {
        let agent = shell::own_program("ipip-agent")?;
        let mut command = self.machine.command(&agent.to_string_lossy());
        command.args(["--node-name", "n1", "--masquerade", "false"]);
        command.args([
            "--cni-bin-dir",
            self.cni.bin,
            "--cni-conf-dir",
            self.cni.conf,
        ]);
        command
            .arg("--cni-bin-source")
            .arg(self.folder.join("plugins"));
        Ok(command)
    }

    /// The list that the agent writes.
    pub fn list(&self) -> String {
        format!("{}/01-ipip.conflist", self.cni.conf)
    }

    /// Starts the agent, and waits for its list.
    pub fn start_agent(&self) -> Result<()> {
        self.machine.write("/etc/ipip/inventory.yaml", INVENTORY)?;
        let mut command = self.agent()?;
        self.machine.daemon("ipip-agent", &mut command)?;
        wait::within(Duration::from_secs(90), "the agent writes the list", || {
            self.machine.check_daemons()?;
            let list = self
                .machine
                .output("grep", &["-q", "host-local", &self.list()])?;
            Ok(list.status.success())
        })
        .with_context(|| self.machine.log_tail("ipip-agent", 20))
    }

    /// A file of the node, as seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.machine.holder()))
    }

    /// Everything that pods can leave: links, map entries, pins, leases, namespaces.
    pub fn traces(&self) -> Result<Vec<String>> {
        let links = self.machine.enter(|| Netlink::open()?.links())??;
        let links = links.iter().filter(|link| link.name.starts_with("pod"));
        let mut traces: Vec<String> = links.map(|link| format!("link {}", link.name)).collect();
        let pins = Pins::new(self.path("/sys/fs/bpf/ipip"));
        for entry in Maps::open(&pins)?.pods.iter() {
            traces.push(format!("entry {}", entry?.0));
        }
        for (what, folder, prefix) in [
            ("pin", pins.links(), "pod"),
            ("lease", self.path("/run/ipip/ipam/ipip"), "10."),
            ("namespace", self.path("/run/netns"), "cni-"),
        ] {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.starts_with(prefix) {
                    traces.push(format!("{what} {name}"));
                }
            }
        }
        Ok(traces)
    }

    /// Fails if pods have left anything.
    pub fn expect_no_trace(&self) -> Result<()> {
        let traces = self.traces()?;
        ensure!(traces.is_empty(), "left behind: {traces:?}");
        Ok(())
    }
}

impl Drop for RuntimeNode {
    fn drop(&mut self) {
        self.trash.empty();
    }
}
