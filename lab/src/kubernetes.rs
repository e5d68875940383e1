//! A real Kubernetes cluster in the lab's clouds: real etcd, control plane, kubelets, containerd and
//! kube-proxy, each node in namespaces of its own. Dropping it removes all of it.

pub(crate) mod addons;
pub mod certificates;
pub mod control_plane;
pub mod provider;
pub mod scenarios;
pub mod settings;
pub mod tools;
pub mod worker;

mod bridge;
mod leftovers;
mod machine;
mod pod_host;
mod state;

pub use leftovers::{folder_of, leftovers, remove};
pub use machine::Machine;
pub use pod_host::{PodHost, container_id};
pub use settings::{PodNetwork, ProxyMode, Settings};
pub use state::ClusterState;
pub use tools::Tools;

use crate::{
    fabric::Fabric,
    topology::{NodeSpec, Topology},
};
use anyhow::{Context, Result, bail};
use ipip_testkit::{
    limits, scratch,
    trash::{Item, Trash},
    wait,
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

/// Packets that every cloud's firewall accepts from the Internet: tunnels, the API server, NodePorts.
pub const OPEN: &str = "ip protocol 4 accept; tcp dport { 6443, 30000-32767 } accept";

/// The folder that a user applies with `kubectl apply --kustomize`.
pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    prefix: String,
    folder: PathBuf,
    settings: Settings,
    tools: Tools,
    fabric: Fabric,
    machines: Vec<Machine>,
    trash: Trash,
}

/// Called after each step, with its name and its duration.
pub type Progress<'a> = &'a dyn Fn(&str, Duration);

impl Cluster {
    /// Builds and starts a cluster with a unique name. Returns when all nodes have registered. With a pod
    /// network, it returns when the nodes are also ready and CoreDNS serves.
    pub fn start(settings: Settings, progress: Progress) -> Result<Self> {
        Self::start_as(&scratch::unique_prefix(), settings, progress)
    }

    /// Builds and starts a cluster with this name, as [`Cluster::start`] does.
    pub fn start_as(prefix: &str, settings: Settings, progress: Progress) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a cluster makes namespaces, mounts and cgroups: run it as root");
        }
        let tools = Tools::find()?;
        limits::raise(limits::INOTIFY)?;
        let trash = Trash::default();
        let started = Self::assemble(prefix, settings, tools, &trash)
            .and_then(|cluster| cluster.bring_up(progress).map(|()| cluster));
        if started.is_err() {
            trash.empty();
        }
        started
    }

    fn assemble(prefix: &str, settings: Settings, tools: Tools, trash: &Trash) -> Result<Self> {
        let folder = folder_of(prefix);
        trash.add(Item::Folder(folder.clone()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let topology = &settings.topology;
        let fabric = Fabric::build(prefix, topology, trash)?;
        fabric.close(OPEN)?;
        let mut machines = Vec::new();
        for spec in &topology.nodes {
            let host = fabric.add_node(prefix, topology, spec, trash)?;
            host.sysctl("net.ipv4.ip_forward", "1")?;
            let files = folder.join(&spec.name);
            machines.push(Machine::start(host, &spec.name, files, &tools, trash)?);
        }
        let cluster = Self {
            prefix: prefix.into(),
            folder,
            settings,
            tools,
            fabric,
            machines,
            trash: trash.clone(),
        };
        ClusterState::of(&cluster).write(&cluster.folder)?;
        Ok(cluster)
    }

    fn bring_up(&self, progress: Progress) -> Result<()> {
        let step = |what: &str, run: &mut dyn FnMut() -> Result<()>| {
            let began = Instant::now();
            run().with_context(|| format!("{what}\n{}", self.report()))?;
            progress(what, began.elapsed());
            Ok::<_, anyhow::Error>(())
        };
        let control_plane = self.control_plane();
        step("certificates", &mut || {
            certificates::create(control_plane, &self.settings)
        })?;
        step("etcd, API server, controllers and scheduler", &mut || {
            control_plane::start(control_plane, &self.settings)
        })?;
        step("containerd on each node, with images", &mut || {
            std::thread::scope(|scope| {
                let starting: Vec<_> = self
                    .machines
                    .iter()
                    .map(|machine| scope.spawn(|| worker::start_containerd(machine, &self.tools)))
                    .collect();
                starting.into_iter().try_for_each(joined)
            })
        })?;
        step("kubelets and kube-proxies", &mut || {
            for (machine, spec) in self.nodes() {
                worker::start_kubelet(machine, control_plane, spec, &self.settings)?;
                worker::start_proxy(machine, control_plane, spec, &self.settings)?;
            }
            Ok(())
        })?;
        step("nodes register", &mut || {
            for (machine, spec) in self.nodes() {
                provider::initialise(self, machine, spec)?;
            }
            provider::sign_kubelet_certificates(self)
        })?;
        match self.settings.network {
            PodNetwork::None => return Ok(()),
            PodNetwork::Bridge => step("pod network and nodes ready", &mut || {
                for (machine, spec) in self.nodes() {
                    bridge::install(self, machine, spec)?;
                }
                self.wait_ready()
            }),
            PodNetwork::Ipip => step("kubectl apply, and nodes ready", &mut || self.install()),
        }?;
        step("CoreDNS", &mut || {
            self.install_dns(self.settings.dns_node()?)
        })
    }

    /// Installs this project as a user does, and waits until every node is ready.
    pub fn install(&self) -> Result<()> {
        self.import("ipip")?;
        self.kubectl(&["apply", "--kustomize", MANIFESTS])?;
        if self.settings.own_pool {
            let pool = format!("IPIP_CLUSTER_POD_CIDRS={}", self.settings.pod_network);
            let set_env = [
                "set",
                "env",
                "--namespace=kube-system",
                "daemonset/ipip-agent",
            ];
            self.kubectl(&[&set_env[..], &[&pool]].concat())?;
        }
        self.wait_ready()
    }

    /// Waits until every node is ready.
    pub fn wait_ready(&self) -> Result<()> {
        for (machine, spec) in self.nodes() {
            let what = format!("{} is ready", spec.name);
            wait::within(Duration::from_secs(180), &what, || {
                machine.check_daemons()?;
                let node = self.get(&format!("node/{}", spec.name), None)?;
                Ok(condition(&node, "Ready") == Some("True"))
            })?;
        }
        Ok(())
    }

    /// Runs kubectl as the administrator, on the control plane's machine.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.control_plane().run("kubectl", arguments)
    }

    /// Runs kubectl as the administrator, and returns its output even if it fails.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<Output> {
        self.control_plane().output("kubectl", arguments)
    }

    /// Applies these objects with `kubectl apply`, and returns its output.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.control_plane()
            .run_with_input("kubectl", &["apply", "-f", "-"], yaml)
    }

    /// One object (`node/a1`), or a list (`pods`), as JSON.
    pub fn get(&self, what: &str, namespace: Option<&str>) -> Result<Value> {
        let printed = self.kubectl(&[
            "get",
            what,
            "--namespace",
            namespace.unwrap_or("default"),
            "--output=json",
        ])?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
    }

    /// Imports the image `NAME.tar` of `target/image` on every node.
    pub fn import(&self, image: &str) -> Result<()> {
        self.machines
            .iter()
            .try_for_each(|machine| worker::import(machine, &self.tools, image))
    }

    /// Waits until a pod is ready.
    pub fn wait_pod(&self, name: &str) -> Result<Value> {
        let mut pod = Value::Null;
        let waited = wait::within(Duration::from_secs(120), "it is ready", || {
            pod = self.get(&format!("pod/{name}"), None)?;
            Ok(condition(&pod, "Ready") == Some("True"))
        });
        waited.with_context(|| {
            let described = self.kubectl(&["describe", "pod", name]);
            format!("the pod {name}: {}", described.unwrap_or_default())
        })?;
        Ok(pod)
    }

    /// Starts a pod that runs a shell script in busybox on a node.
    pub fn run_pod(&self, name: &str, node: &str, script: &str) -> Result<()> {
        let pod = worker::pod_on_node(name, node, worker::BUSYBOX, script);
        self.wait_default_account()?;
        self.apply(&pod.to_string()).map(drop)
    }

    /// Waits for the default service account. Without it, pods are refused.
    pub fn wait_default_account(&self) -> Result<()> {
        wait::until("the default service account exists", || {
            let asked = self.kubectl_output(&["get", "serviceaccount", "default"])?;
            Ok(asked.status.success())
        })
    }

    /// The prefix of all its names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Its files, with a folder for each machine.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The settings it was built from.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its programs and images.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The topology. A caller that changes it must change the fabric, too.
    pub fn topology_mut(&mut self) -> &mut Topology {
        &mut self.settings.topology
    }

    /// The network between the machines.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// All machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines
            .iter()
            .find(|machine| machine.hostname() == name)
            .with_context(|| format!("no node is called {name}"))
    }

    /// A node's entry in the topology.
    pub fn spec(&self, node: &str) -> Result<&NodeSpec> {
        let mut nodes = self.settings.topology.nodes.iter();
        nodes
            .find(|spec| spec.name == node)
            .with_context(|| format!("no node is called {node}"))
    }

    /// Its list of objects to remove. A caller adds the objects that it creates for the cluster.
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// The machine that the control plane runs on: the first.
    pub fn control_plane(&self) -> &Machine {
        &self.machines[0]
    }

    /// Each machine with its entry in the topology.
    pub fn nodes(&self) -> impl Iterator<Item = (&Machine, &NodeSpec)> {
        self.machines.iter().zip(&self.settings.topology.nodes)
    }

    /// Diagnostics for a failed test: the ends of the daemons' logs.
    pub fn report(&self) -> String {
        let mut report = String::new();
        for machine in &self.machines {
            for daemon in machine.daemon_names() {
                report += &format!(
                    "--- {}: log of {daemon}\n{}\n",
                    machine.hostname(),
                    machine.log_tail(&daemon, 8)
                );
            }
            let agent = "tail --quiet --lines=15 /var/log/pods/kube-system_ipip-agent-*/*/*.log";
            if let Ok(said) = machine.run("sh", &["-c", agent]) {
                report += &format!("--- {}: log of its agent\n{said}\n", machine.hostname());
            }
        }
        report
    }

    /// Leaves everything running when this is dropped; [`remove`] removes it.
    pub fn keep(&self) {
        self.trash.keep();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.trash.empty();
    }
}

/// The status of a condition of a node or a pod.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
