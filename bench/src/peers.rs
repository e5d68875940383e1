//! What an agent costs that verifies the paths to thousands of peers.
//!
//! The node, its agent and its programs are real. All peers are one thread behind the node's uplink, which answers their
//! probes. Packets that the agent sends are received there in the same system call, so the agent's time includes that.

mod report;
mod responder;

use crate::{output, peer_addresses};
use anyhow::{Context, Result, ensure};
use clap::Args;
use ipip_abi::{Encapsulation, Peer};
use ipip_datapath::{Maps, first_values};
use ipip_lab::{
    Lab, LabNode,
    inventory::InventoryNode,
    topology::{NodeSpec, Topology},
};
use ipip_testkit::{node_maps, trash::empty_all_on_interrupt, wait};
use report::{Load, PeersReport};
use responder::{Peers, Responder};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Realms of all nodes together, of which the measured node's is one.
const REALMS: u32 = 20;
/// The uplink's other end.
const PORT: &str = "lan0";
/// At the uplink's other end, the peers take packets before the network stack, whose time would be the agent's.
const TAKEN: &str = "
table netdev peers {
  chain taken { type filter hook ingress device PORT priority 0; meta protocol ip drop; }
}
";
/// Longest time until each path is proven, and until each failed path is left.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Between two packets to an active peer.
const PACKETS: Duration = Duration::from_millis(250);
/// After a change, until paths and probes have settled.
const SETTLE: Duration = Duration::from_secs(15);
/// The discard port (RFC 863).
const DISCARD: u16 = 9;

/// Arguments of the benchmark `peers`.
#[derive(Debug, Args)]
pub struct PeersOptions {
    /// Peers
    #[arg(long, value_name = "N", default_value_t = 5000)]
    peers: u32,
    /// Peers with traffic, in the second part
    #[arg(long, value_name = "N", default_value_t = 500)]
    active: u32,
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    seconds: u64,
    /// Seconds before the first measurement, after the agent has started with proven paths
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    settle: u64,
    /// Also write the numbers to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl PeersOptions {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        ensure!(
            (1..=self.peers).contains(&self.active),
            "--active is {}; remedy: use 1 to {}, the number of --peers",
            self.active,
            self.peers
        );
        ensure!(self.seconds > 0, "--seconds is 0; remedy: use 1 or more");
        empty_all_on_interrupt()?;
        let lab = one_node()?;
        let node = &lab.nodes()[0];
        lab.write_inventory(&inventory(node.spec(), self.peers)?)?;
        eprintln!("{} peers", self.peers);
        lab.start_agents()?;
        let maps = node.maps()?;
        let active = self.indexes(node, |number| number < self.active)?;
        let mut peers = Peers::new(&maps, node.public()?)?;
        peers.own_realm = self.indexes(node, |number| number.is_multiple_of(REALMS))?;
        peers.failing = active.clone();
        let gateway = lab.fabric().gateway(&node.spec().cloud)?;
        let mut responder = Responder::start(gateway, PORT, peers)?;
        let file = node.folder().join("state/paths.json");
        wait::within(TIMEOUT, "the path to each peer is proven", || {
            thread::sleep(Duration::from_secs(1));
            let proven = proven(&file);
            eprint!("\r{proven} paths are proven ");
            Ok(proven == self.peers as usize)
        })?;
        eprintln!();
        // An agent that finds all paths works more than one that knows them.
        node.stop_agent()?;
        node.restart_agent()?;
        thread::sleep(Duration::from_secs(self.settle));
        let idle = self.load(node, &mut responder)?;
        let ends = AtomicBool::new(false);
        let socket = node.udp(0)?;
        let (busy, left_after) = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&socket, self.active, &ends));
            let measured = self.with_traffic(node, &maps, &mut responder, &active);
            ends.store(true, Ordering::Relaxed);
            let sent = sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent.and(measured)
        })?;
        let report = PeersReport {
            peers: self.peers,
            active: self.active,
            idle,
            busy,
            left_after,
        };
        println!("{}", report.table());
        if let Some(path) = &self.json {
            output::write_json(path, &report.json())?;
        }
        Ok(())
    }

    /// The indexes of the peers with these numbers.
    fn indexes(&self, node: &LabNode, wanted: impl Fn(u32) -> bool) -> Result<BTreeSet<u16>> {
        let known = node_maps::peers(&node.maps()?)?;
        (0..self.peers)
            .filter(|number| wanted(*number))
            .map(|number| {
                let name = peer_addresses::name(number);
                let index = known.get(&name).copied();
                index.with_context(|| format!("the agent has no peer {name}"))
            })
            .collect()
    }

    /// The load while there is traffic, and the seconds until each active peer has another path after its own failed.
    fn with_traffic(
        &self,
        node: &LabNode,
        maps: &Maps,
        responder: &mut Responder,
        active: &BTreeSet<u16>,
    ) -> Result<(Load, Vec<f64>)> {
        eprintln!("packets to {} of them", self.active);
        thread::sleep(SETTLE);
        let before = responder.count()?.data;
        let load = self.load(node, responder)?;
        let arrived = (responder.count()?.data - before) as f64;
        let per_second = Duration::from_secs(1).as_secs_f64() / PACKETS.as_secs_f64();
        let sent = per_second * self.seconds as f64 * f64::from(self.active);
        ensure!(
            arrived > sent * 0.9,
            "{arrived} of some {sent} packets have arrived; is the machine overloaded?"
        );
        eprintln!("their paths fail");
        responder.fail();
        let began = Instant::now();
        let mut waiting = active.clone();
        let mut left_after = Vec::new();
        wait::within(TIMEOUT, "each failed path is left", || {
            let paths = first_values(&maps.peers, maps.peers.len())?;
            let has_left = |index: &u16| {
                let path: Option<&Peer> = paths.get(usize::from(*index));
                path.is_some_and(|it| it.encapsulation == Encapsulation::Udp as u8)
            };
            let seconds = began.elapsed().as_secs_f64();
            let left = waiting.extract_if(.., |it| has_left(it));
            left_after.extend(left.map(|_| seconds));
            Ok(waiting.is_empty())
        })?;
        Ok((load, left_after))
    }

    fn load(&self, node: &LabNode, responder: &mut Responder) -> Result<Load> {
        let pid = node.agent_pid()?;
        let began = Instant::now();
        let (cpu, before) = (cpu_seconds(pid)?, responder.count()?);
        thread::sleep(Duration::from_secs(self.seconds));
        let (cpu, after) = (cpu_seconds(pid)? - cpu, responder.count()?);
        let seconds = began.elapsed().as_secs_f64();
        Ok(Load {
            cpu: cpu / seconds * 100.0,
            probes: (after.probes - before.probes) as f64 / seconds,
            bits: (after.bytes - before.bytes) as f64 * 8.0 / seconds,
        })
    }
}

/// A lab with one node, behind a gateway that passes on nothing.
fn one_node() -> Result<Lab> {
    let mut topology = Topology::one_realm();
    topology.nodes.truncate(1);
    topology.nat = false;
    let lab = Lab::build(topology)?;
    let gateway = lab.fabric().gateway(&lab.nodes()[0].spec().cloud)?;
    gateway.nft(&TAKEN.replace("PORT", PORT))?;
    Ok(lab)
}

/// The node and its peers.
fn inventory(own: &NodeSpec, peers: u32) -> Result<Vec<InventoryNode>> {
    let peer = |number: u32| -> Result<InventoryNode> {
        let realm = match number % REALMS {
            0 => own.cloud.clone(),
            other => format!("cloud-{other}"),
        };
        let spec = NodeSpec {
            name: peer_addresses::name(number),
            cloud: realm.clone(),
            addresses: vec![peer_addresses::internal_ip(number)],
            internal_ips: None,
            public: Some(peer_addresses::public_endpoint(number)),
            pod_cidr: peer_addresses::pod_cidr(number)?,
            realm: Some(realm),
            encapsulation: None,
            pods: 0,
        };
        Ok(spec.inventory())
    };
    let own = Ok(own.inventory());
    [own].into_iter().chain((0..peers).map(peer)).collect()
}

/// How many paths have been proven, as the agent records them for the next one.
fn proven(file: &Path) -> usize {
    let text = fs::read_to_string(file).unwrap_or_default();
    let paths: Value = serde_json::from_str(&text).unwrap_or_default();
    let peers = paths["peers"].as_object();
    let peers = peers.into_iter().flat_map(|it| it.values());
    peers.filter(|it| it["path"].is_array()).count()
}

/// Sends a packet to a pod of each active peer, again and again.
fn send(socket: &UdpSocket, active: u32, ends: &AtomicBool) -> Result<()> {
    let mut next = Instant::now();
    while !ends.load(Ordering::Relaxed) {
        for number in 0..active {
            let pod = peer_addresses::pod_cidr(number)?.nth(2);
            let pod = pod.context("a pod CIDR without addresses")?;
            // While a path is changed, the kernel may refuse a packet.
            let sent = socket.send_to(&[0; 64], SocketAddrV4::new(pod, DISCARD));
            sent.inspect_err(|error| eprintln!("{pod}: {error}")).ok();
        }
        next += PACKETS;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Time of all threads of a process, in user space and in the kernel (proc(5)).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name may contain spaces; the fields behind it begin with the third.
    let (_, fields) = text.rsplit_once(") ").with_context(|| text.clone())?;
    let mut fields = fields.split(' ').skip(11).map(str::parse::<u64>);
    let mut ticks = || fields.next().with_context(|| text.clone());
    Ok((ticks()?? + ticks()??) as f64 / 100.0)
}
