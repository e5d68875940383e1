//! A node: a machine with a real agent.

use crate::{
    probe_keys,
    topology::{NodeSpec, Topology},
};
use anyhow::{Context, Result, bail, ensure};
use ipip_abi::{Counter, DropReason, PeerTraffic};
use ipip_datapath::{Maps, Pins, Programs};
use ipip_testkit::{
    host::Host,
    http::{self, Response},
    node_maps, shell,
    trash::{Item, Trash, pid},
    wait,
};
use nix::sys::signal::{Signal, kill};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The health endpoint of the agent, in the node's namespace.
const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9878);

/// The capabilities of an agent: those of its container in the manifests.
const RIGHTS: &str = "--bounding-set=-all,+bpf,+net_admin,+perfmon";

/// A node of the lab; also its [`Host`].
#[derive(Debug)]
pub struct LabNode {
    host: Host,
    spec: NodeSpec,
    folder: PathBuf,
    pins: Pins,
    attach: String,
    programs: Mutex<Option<PathBuf>>,
    agent: Mutex<Option<Child>>,
    trash: Trash,
}

/// The agent's configuration file.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentFile<'a> {
    node_name: &'a str,
    inventory: &'a Path,
    pin_root: &'a Path,
    state_dir: PathBuf,
    run_dir: PathBuf,
    health: SocketAddrV4,
    #[serde(flatten)]
    settings: &'a crate::topology::AgentConfig,
}

impl Deref for LabNode {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl LabNode {
    /// Writes the agent's configuration for the machine `host`. No agent runs yet.
    pub fn new(
        host: Host,
        spec: NodeSpec,
        topology: &Topology,
        lab_folder: &Path,
        pin_root: PathBuf,
        trash: &Trash,
    ) -> Result<Self> {
        let folder = lab_folder.join(&spec.name);
        fs::create_dir_all(&folder)?;
        let config = AgentFile {
            node_name: &spec.name,
            inventory: &lab_folder.join("inventory.yaml"),
            pin_root: &pin_root,
            state_dir: folder.join("state"),
            run_dir: folder.join("run"),
            health: HEALTH,
            settings: &topology.agent,
        };
        probe_keys::write(&spec.name, &config.run_dir)?;
        fs::write(folder.join("agent.yaml"), serde_saphyr::to_string(&config)?)?;
        Ok(Self {
            host,
            spec,
            pins: Pins::new(pin_root),
            folder,
            attach: topology.agent.attach.clone().unwrap_or("auto".into()),
            programs: Mutex::new(topology.programs.clone()),
            agent: Mutex::new(None),
            trash: trash.clone(),
        })
    }

    /// Its entry in the topology.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its first InternalIP.
    pub fn internal_ip(&self) -> Ipv4Addr {
        self.spec.internal_ips()[0]
    }

    /// Its public address.
    pub fn public(&self) -> Result<Ipv4Addr> {
        self.spec
            .public
            .with_context(|| format!("{} has no public address", self.spec.name))
    }

    /// Its folder: `agent.yaml`, `agent.log`, `state/`, `ipam/`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The attach mode that its agent and plugin use.
    pub fn attach_mode(&self) -> &str {
        &self.attach
    }

    /// The path of one of the project's own programs: in the folder of [`Self::set_programs`] or of the topology, if
    /// one of them names one.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let programs = self.programs.lock();
        match &*programs.unwrap_or_else(PoisonError::into_inner) {
            Some(folder) => shell::program_in(folder, name),
            None => shell::own_program(name),
        }
    }

    /// From now on, agent and plugin are those of `folder`, or those of this build.
    pub fn set_programs(&self, folder: Option<PathBuf>) {
        let programs = self.programs.lock();
        *programs.unwrap_or_else(PoisonError::into_inner) = folder;
    }

    /// The agent's log file.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The command that runs `ipip-agent` with this node's configuration.
    pub fn agent_command(&self) -> Result<Command> {
        let mut command = Command::new(self.program("ipip-agent")?);
        command
            .arg("--config")
            .arg(self.folder.join("agent.yaml"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the agent, and does not wait until it is ready.
    pub fn start_agent(&self) -> Result<()> {
        let mut agent = self.agent();
        ensure!(
            agent.is_none(),
            "the agent of {} already runs",
            self.spec.name
        );
        let plain = self.agent_command()?;
        let mut command = Command::new("setpriv");
        command
            .args([RIGHTS, "--"])
            .arg(plain.get_program())
            .args(plain.get_args());
        let child = self
            .host
            .daemon(&mut command, &self.log_path(), &self.trash)?;
        *agent = Some(child);
        Ok(())
    }

    /// Waits until `/readyz` answers that the agent is ready.
    pub fn wait_ready(&self, max_wait: Duration) -> Result<()> {
        let deadline = Instant::now() + max_wait;
        loop {
            let answer = match self.ready() {
                Ok(Response { status: 200, .. }) => return Ok(()),
                Ok(Response { status, body }) => format!("{status} {body}"),
                Err(error) => format!("{error:#}"),
            };
            let ended = match self.agent().as_mut() {
                Some(child) => child.try_wait()?,
                None => bail!("the agent of {} was not started", self.spec.name),
            };
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "the agent of {} is not ready ({}): {answer}\n{}",
                    self.spec.name,
                    ended.map_or("it runs".into(), |status| status.to_string()),
                    self.log_tail(30)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the agent has promoted every pod that began with clsact.
    pub fn wait_promoted(&self) -> Result<()> {
        let mode = self.attach.parse()?;
        wait::within(Duration::from_secs(60), "every pod is promoted", || {
            let waiting = self.enter(|| Programs::open(&self.pins, mode)?.promotable())??;
            Ok(waiting.is_empty())
        })
        .with_context(|| self.log_tail(10))
    }

    /// Starts the agent and waits until it is ready.
    pub fn restart_agent(&self) -> Result<()> {
        self.start_agent()?;
        self.wait_ready(Duration::from_secs(60))
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_agent(&self) -> Result<()> {
        self.end_agent(Signal::SIGKILL).map(drop)
    }

    /// Ends the agent with SIGTERM, as systemd or a kubelet does.
    pub fn stop_agent(&self) -> Result<ExitStatus> {
        self.end_agent(Signal::SIGTERM)
    }

    /// Whether the lab has started an agent here, and not ended it.
    pub fn agent_runs(&self) -> bool {
        self.agent().is_some()
    }

    /// The process of the agent.
    pub fn agent_pid(&self) -> Result<u32> {
        let agent = self.agent();
        let agent = agent.as_ref().context("no agent runs")?;
        Ok(agent.id())
    }

    /// The answer of `/readyz`.
    pub fn ready(&self) -> Result<Response> {
        http::get(&self.host, HEALTH, "/readyz")
    }

    /// Runs `ipipctl` for this node's pins.
    pub fn ipipctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(shell::own_program("ipipctl")?);
        command
            .arg("--pin-root")
            .arg(self.pins.root())
            .env("IPIP_STATE_DIR", self.folder.join("state"))
            .args(arguments);
        self.host.output(&mut command)
    }

    /// Runs `ipipctl -o json` for this node's pins, and returns what it prints.
    pub fn ipipctl_json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = self.ipipctl(&[arguments, &["-o", "json"]].concat());
        let text = shell::printed(&format!("ipipctl {arguments:?} -o json"), Ok(output?))?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// How often the agent has repaired something since it started, by kind.
    pub fn repairs(&self) -> Result<serde_json::Value> {
        Ok(self.ipipctl_json(&["status"])?["agent"]["repairs"].take())
    }

    /// How often the agent has repaired something of this kind.
    pub fn repaired(&self, kind: &str) -> Result<u64> {
        Ok(self.repairs()?[kind].as_u64().unwrap_or_default())
    }

    /// Its maps.
    pub fn maps(&self) -> Result<Maps> {
        Maps::open(&self.pins)
            .with_context(|| format!("cannot open the maps of {}", self.spec.name))
    }

    /// Packets dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> Result<u64> {
        Ok(self.maps()?.tally_drop(reason)?.packets)
    }

    /// Packets counted as `counter`.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        Ok(self.maps()?.tally_counter(counter)?.packets)
    }

    /// The index of every peer, by its name.
    pub fn peers(&self) -> Result<BTreeMap<String, u16>> {
        node_maps::peers(&self.maps()?)
    }

    /// The index of the peer `name`.
    pub fn peer_index(&self, name: &str) -> Result<u16> {
        let index = self.peers()?.get(name).copied();
        index.with_context(|| format!("{} has no peer {name}", self.spec.name))
    }

    /// Packets and bytes sent to the peer `name`, and received from it.
    pub fn traffic(&self, name: &str) -> Result<PeerTraffic> {
        Ok(self.maps()?.traffic(self.peer_index(name)?)?)
    }

    /// The last lines of the agent's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = {
            let all: Vec<&str> = log.lines().collect();
            all[all.len().saturating_sub(lines)..].to_vec()
        };
        lines.join("\n")
    }

    fn end_agent(&self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self
            .agent()
            .take()
            .with_context(|| format!("no agent runs on {}", self.spec.name))?;
        kill(pid(&child), signal)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait()? {
                self.trash.forget(&Item::process(&child));
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "the agent of {} does not end on {signal}:\n{}",
                    self.spec.name,
                    self.log_tail(10)
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn agent(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
