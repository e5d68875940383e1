//! Virtual machines with Debian 12 in a network of their own, and the control plane of their cluster: beside them, where
//! it is fast, or on one of them, made by `kubeadm init`.
//!
//! QEMU emulates the processor, so KVM is not needed, and everything on a machine takes some ten times as long.
//! Dropping a [`Site`] removes all of it.

mod control_plane;
mod guest_agent;
mod init;
mod machine;
mod node;
mod programs;

pub use guest_agent::Printed;
pub use machine::VirtualMachine;

use crate::{
    kubernetes::{
        MANIFESTS, Machine, Settings, Tools, addons::COREDNS, condition, folder_of, worker,
    },
    topology::{Cloud, NodeSpec, Topology},
};
use anyhow::{Context, Result};
use ipip_testkit::{
    host::Host,
    limits, scratch,
    trash::{Item, Trash},
    wait,
};
use serde_json::Value;
use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// The address of the machines' gateway, and of the control plane beside them.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// The host name there.
const OUTSIDE_NAME: &str = "control-plane";

/// How long [`Site::wait`] waits.
const MAX_WAIT: Duration = Duration::from_secs(900);
/// How often it looks. Each look starts kubectl.
const POLL: Duration = Duration::from_millis(500);

/// The network of the machines.
const PREFIX: u8 = 24;

/// Virtual machines on one LAN with the machine that runs them.
#[derive(Debug)]
pub struct Site {
    /// Runs QEMU, kubectl, and the control plane unless a virtual machine runs it.
    pub outside: Machine,
    /// The virtual machines.
    pub machines: Vec<VirtualMachine>,
    settings: Settings,
    programs: PathBuf,
    trash: Trash,
}

impl Site {
    /// Boots machines with these names and a kernel of this series, and starts the control plane that they can join.
    pub fn start(kernel: &str, names: &[&str]) -> Result<Self> {
        Self::boot(kernel, names, Use::Node, |site| {
            timed("control plane", || control_plane::start(site))
        })
    }

    /// Boots one machine, on which [`Site::init`] can make the control plane.
    pub fn start_without_control_plane(kernel: &str, name: &str) -> Result<Self> {
        Self::boot(kernel, &[name], Use::ControlPlane, |_| Ok(()))
    }

    /// `meanwhile` runs while the machines boot.
    fn boot(
        kernel: &str,
        names: &[&str],
        purpose: Use,
        meanwhile: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let trash = Trash::default();
        let started = Self::build(kernel, names, purpose, &trash).and_then(|site| {
            meanwhile(&site)?;
            timed("machines boot", || {
                site.machines.iter().try_for_each(|machine| {
                    site.wait_up(machine)?;
                    machine.configure(PREFIX, OUTSIDE)
                })
            })?;
            Ok(site)
        });
        if started.is_err() {
            trash.empty();
        }
        started
    }

    fn build(kernel: &str, names: &[&str], purpose: Use, trash: &Trash) -> Result<Self> {
        let tools = Tools::find_some(&["kube-scheduler", "kubelet", "kubeadm", "kube-proxy"])?;
        limits::raise(limits::INOTIFY)?;
        let prefix = scratch::unique_prefix();
        let folder = folder_of(&prefix);
        trash.add(Item::Folder(folder.clone()));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let host = Host::create(format!("{prefix}-lan"), trash)?;
        host.ip("link add lan type bridge")?;
        host.ip(&format!("addr add {OUTSIDE}/{PREFIX} dev lan"))?;
        host.ip("link set lan up")?;
        let files = folder.join("outside");
        let outside = Machine::start(host, OUTSIDE_NAME, files, &tools, trash)?;
        let programs = timed("disk of programs", || {
            programs::disk(&tools, purpose.images(), &folder)
        })?;
        let memory = purpose.memory();
        let mut machines = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let address = Ipv4Addr::from_bits(OUTSIDE.to_bits() + 10 + number as u32);
            let machine = VirtualMachine::create(name, number, address, kernel, memory, &folder)?;
            machine.power_on(&outside, &programs)?;
            machines.push(machine);
        }
        Ok(Self {
            outside,
            machines,
            settings: settings(),
            programs,
            trash: trash.clone(),
        })
    }

    /// The cluster's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Result<&VirtualMachine> {
        let mut machines = self.machines.iter();
        machines
            .find(|machine| machine.name() == name)
            .with_context(|| format!("no machine is called {name}"))
    }

    /// Makes each machine a node.
    pub fn join(&self) -> Result<()> {
        timed("machines join", || {
            thread::scope(|scope| {
                let joining: Vec<_> = self
                    .machines
                    .iter()
                    .map(|machine| scope.spawn(|| node::join(self, machine)))
                    .collect();
                joining.into_iter().try_for_each(|thread| {
                    let ended = thread.join();
                    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
            })
        })
    }

    /// Makes the control plane on the only machine, which becomes a node.
    pub fn init(&self) -> Result<()> {
        timed("kubeadm init", || init::init(self, &self.machines[0]))
    }

    /// Installs this project with a Kustomize overlay, and waits until every node is ready.
    pub fn install(&self, overlay: &str) -> Result<()> {
        self.apply_overlay(overlay)?;
        timed("nodes are ready", || self.wait_ready())
    }

    /// Applies a Kustomize overlay, in which `MANIFESTS` is the folder of this project's manifests.
    pub fn apply_overlay(&self, overlay: &str) -> Result<()> {
        let folder = self.outside.folder().join("overlay");
        fs::create_dir_all(&folder)?;
        let base = fs::canonicalize(MANIFESTS)?;
        // Kustomize accepts only relative paths.
        let up = "../".repeat(folder.components().count() - 1);
        let base = format!("{up}{}", base.display().to_string().trim_start_matches('/'));
        fs::write(
            folder.join("kustomization.yaml"),
            overlay.replace("MANIFESTS", &base),
        )?;
        let folder = folder.display().to_string();
        self.kubectl(&["apply", "--kustomize", &folder]).map(drop)
    }

    /// Waits until every node is ready.
    pub fn wait_ready(&self) -> Result<()> {
        for machine in &self.machines {
            let name = machine.name();
            self.wait(&format!("{name} is ready"), || {
                let node = self.get(&format!("node/{name}"))?;
                Ok(condition(&node, "Ready") == Some("True"))
            })?;
        }
        Ok(())
    }

    /// Installs CoreDNS on a machine.
    pub fn install_dns(&self, machine: &str) -> Result<()> {
        let address = self.settings.dns().to_string();
        let objects = COREDNS
            .replace("NODE", machine)
            .replace("ADDRESS", &address);
        self.apply(&objects)?;
        self.wait_dns()
    }

    /// Waits until each replica of CoreDNS is ready.
    pub fn wait_dns(&self) -> Result<()> {
        self.wait("CoreDNS serves", || {
            let deployment = self.get("deployment/coredns --namespace=kube-system")?;
            let wanted = &deployment["spec"]["replicas"];
            Ok(wanted.is_u64() && deployment["status"]["readyReplicas"] == *wanted)
        })
    }

    /// Starts a pod that runs a shell script on a machine.
    pub fn run_pod(&self, name: &str, machine: &str, script: &str) -> Result<()> {
        self.wait("the default service account exists", || {
            let asked = self.kubectl(&["get", "serviceaccount", "default"]);
            Ok(asked.is_ok())
        })?;
        let pod = worker::pod_on_node(name, machine, worker::BUSYBOX, script);
        self.apply(&pod.to_string())
    }

    /// Waits until a pod is ready, and returns its address.
    pub fn pod_address(&self, name: &str) -> Result<Ipv4Addr> {
        let mut pod = Value::Null;
        let waited = self.wait(&format!("the pod {name} is ready"), || {
            pod = self.get(&format!("pod/{name}"))?;
            Ok(condition(&pod, "Ready") == Some("True"))
        });
        waited.with_context(|| self.kubectl(&["describe", "pod", name]).unwrap_or_default())?;
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        address
            .parse()
            .with_context(|| format!("the address of the pod {name}"))
    }

    /// Runs a shell script in a pod, and returns its output.
    pub fn in_pod(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.outside.run("kubectl", arguments)
    }

    /// Applies these objects.
    pub fn apply(&self, objects: &str) -> Result<()> {
        let arguments = ["apply", "-f", "-"];
        self.outside
            .run_with_input("kubectl", &arguments, objects)
            .map(drop)
    }

    /// The objects that `kubectl get WHAT` prints, as JSON.
    pub fn get(&self, what: &str) -> Result<Value> {
        let words = ["get", "--output=json"];
        let words = words.into_iter().chain(what.split_whitespace());
        let printed = self.kubectl(&words.collect::<Vec<_>>())?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
    }

    /// Polls `happened` until it is true, for as long as emulated machines on a loaded host may take.
    pub fn wait(&self, what: &str, mut happened: impl FnMut() -> Result<bool>) -> Result<()> {
        wait::within(MAX_WAIT, what, || {
            self.outside.check_daemons()?;
            thread::sleep(POLL);
            happened()
        })
    }

    /// Cuts a machine's power, boots it again, and returns when it runs programs.
    pub fn reset(&self, machine: &VirtualMachine) -> Result<()> {
        machine.cut_power(&self.outside)?;
        machine.power_on(&self.outside, &self.programs)?;
        self.wait_up(machine)
    }

    /// Waits until a machine runs programs. QEMU without KVM hangs in some boots, so there is a second try.
    fn wait_up(&self, machine: &VirtualMachine) -> Result<()> {
        let Err(error) = machine.wait_up(&self.outside) else {
            return Ok(());
        };
        eprintln!("{} is switched off and on: {error:#}", machine.name());
        machine.cut_power(&self.outside)?;
        machine.power_on(&self.outside, &self.programs)?;
        machine.wait_up(&self.outside)
    }

    /// Diagnostics for a failed test.
    pub fn report(&self) -> String {
        let mut report = String::new();
        for machine in &self.machines {
            let script = "journalctl --no-pager --lines=25 --unit=kubelet --unit=containerd; \
                          tail --lines=15 /var/log/pods/kube-system_*/*/*.log";
            let said = match machine.output(script) {
                Ok(printed) => printed.stdout,
                Err(error) => format!("{error:#}\n{}", self.outside.log_tail(machine.name(), 20)),
            };
            report += &format!("--- {}\n{said}\n", machine.name());
        }
        report
    }
}

/// What machines are for.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// A node that joins.
    Node,
    /// `kubeadm init`.
    ControlPlane,
}

impl Use {
    /// Memory in MiB.
    fn memory(self) -> u32 {
        match self {
            Self::Node => 1536,
            // kubeadm wants 1700, and the API server alone takes 500.
            Self::ControlPlane => 4096,
        }
    }

    /// The images that a machine imports.
    fn images(self) -> &'static [&'static str] {
        match self {
            Self::Node => &node::IMAGES,
            Self::ControlPlane => &init::IMAGES,
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.trash.empty();
    }
}

/// A cluster whose nodes share one network.
fn settings() -> Settings {
    let address = OUTSIDE.to_string();
    Settings {
        topology: Topology {
            clouds: vec![Cloud::new("lan", "10.9.0.0/24", "203.0.113.0/24")],
            nodes: vec![NodeSpec::new(OUTSIDE_NAME, "lan", &address, &address, 0)],
            ..Topology::three_clouds()
        },
        providers: Vec::new(),
        ..Settings::default()
    }
}

/// Runs `step`, and prints how long it took.
fn timed<T>(what: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let done = step().with_context(|| what.to_owned())?;
    eprintln!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    Ok(done)
}
