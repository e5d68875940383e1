//! How the programs' own time grows with what their maps hold.
//!
//! Each packet is a `BPF_PROG_TEST_RUN` of its own (a repeated one would find the header of the run
//! before), and the kernel times the program alone (`BPF_ENABLE_STATS`).

use anyhow::{Context, Result, ensure};
use aya::{
    maps::lpm_trie::Key,
    programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions},
    sys::{Stats, enable_stats},
};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use etherparse::{IpNumber, PacketBuilder};
use ipip_abi::{
    Addr, Config, DEFAULT_UDP_PORT, Encapsulation, Flow, FlowKey, Mac, NodeAddr, Peer, Pod, Route,
    programs,
};
use ipip_datapath::{AttachMode, Maps, Pins, load, remove};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

/// From which interface test runs come: `lo`.
const LO: u32 = 1;
const OWN: Addr = Addr([192, 168, 0, 1]);
/// Packets of one sample.
const PACKETS: u32 = 2000;
/// What does not grow in a row.
const FEW: u32 = 10;

/// Measures ns per packet as peers, pods and flows become many.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 25)]
    rounds: usize,
    /// Also write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What grows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Many {
    Peers,
    Pods,
    Flows,
}

/// Which packets are sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Traffic {
    /// The same one again and again: all that it needs is in the CPU's caches.
    One,
    /// Another peer, pod or flow each time, in no order.
    Spread,
    /// As `Spread`, but replies of flows that came out of the host stack.
    Replies,
}

/// The sizes of a node's maps.
#[derive(Clone, Copy, Debug)]
struct Size {
    peers: u32,
    pods: u32,
    flows: u32,
}

const DIMENSIONS: [(Many, &[u32]); 3] = [
    (Many::Peers, &[10, 100, 1_000, 5_000]),
    (Many::Pods, &[10, 1_000, 50_000]),
    (Many::Flows, &[0, 1_000, 100_000]),
];
const PROGRAMS: [(&str, &str); 2] = [
    (programs::FROM_POD, "pod to peer"),
    (programs::FROM_TUNNEL, "peer to pod"),
];

impl Options {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds 0 measures nothing");
        let _stats = enable_stats(Stats::RunTime).context("the kernel does not time programs")?;
        let mut rows = Vec::new();
        let mut overhead = f64::MAX;
        for (many, sizes) in DIMENSIONS {
            eprintln!("filling maps: {many:?} {sizes:?}");
            let nodes: Vec<Node> = sizes
                .iter()
                .map(|size| Node::new(many.size(*size)))
                .collect::<Result<_>>()?;
            overhead = overhead.min(nodes[0].overhead()?);
            let kinds = match many {
                Many::Flows => vec![Traffic::One, Traffic::Spread, Traffic::Replies],
                _ => vec![Traffic::One, Traffic::Spread],
            };
            for (program, name) in PROGRAMS {
                for traffic in &kinds {
                    eprintln!("{name}, {traffic:?}");
                    let samples = self.measure(&nodes, program, *traffic)?;
                    let cells = sizes.iter().copied().zip(samples.into_iter().map(median));
                    rows.push(Row {
                        name: format!("{name}, {}", traffic.text(many)),
                        many,
                        cells: cells.filter_map(|(size, ns)| Some((size, ns?))).collect(),
                    });
                }
            }
        }
        println!("{}", table(&rows, overhead));
        println!(
            "ns a packet of the program alone, less the {overhead:.0} ns that timing takes; medians of {} \
             rounds of {PACKETS} packets; last / first",
            self.rounds
        );
        if let Some(path) = &self.json {
            let rows: Vec<Value> = rows.iter().map(|row| row.json(overhead)).collect();
            fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Samples by node, in turns.
    fn measure(&self, nodes: &[Node], program: &str, traffic: Traffic) -> Result<Vec<Vec<f64>>> {
        let mut samples = vec![Vec::new(); nodes.len()];
        for round in 0..self.rounds {
            for turn in 0..nodes.len() {
                let index = (turn + round) % nodes.len();
                let node = &nodes[index];
                if traffic != Traffic::Replies || node.size.flows > 0 {
                    samples[index].push(node.sample(program, traffic)?);
                }
            }
        }
        Ok(samples)
    }
}

impl Many {
    fn size(self, count: u32) -> Size {
        let mut size = Size {
            peers: FEW,
            pods: FEW,
            flows: 0,
        };
        match self {
            Self::Peers => size.peers = count,
            Self::Pods => size.pods = count,
            Self::Flows => size.flows = count,
        }
        size
    }
}

impl Traffic {
    fn text(self, many: Many) -> String {
        match self {
            Self::One => "one conversation".into(),
            Self::Spread if many == Many::Flows => "past the flows".into(),
            Self::Spread => format!("spread over all {many:?}").to_lowercase(),
            Self::Replies => "replies of the flows".into(),
        }
    }
}

/// A node's datapath with filled maps.
struct Node {
    size: Size,
    pins: Pins,
}

impl Node {
    fn new(size: Size) -> Result<Self> {
        let name = format!(
            "/sys/fs/bpf/ipip-scale-{}-{}-{}-{}",
            std::process::id(),
            size.peers,
            size.pods,
            size.flows
        );
        let node = Self {
            size,
            pins: Pins::new(name),
        };
        load(&node.pins, AttachMode::Auto)?;
        node.fill()?;
        Ok(node)
    }

    fn fill(&self) -> Result<()> {
        let mut maps = Maps::open(&self.pins)?;
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let config = Config {
            ipip0_ifindex: LO,
            ipip0_mac: mac,
            udp_port: DEFAULT_UDP_PORT.to_be_bytes(),
            flags: 0,
            events_per_second: 1,
            pod_mtu: 1480,
        };
        maps.config.set(0, config, 0)?;
        maps.node_addrs
            .insert(OWN, NodeAddr::new(0, NodeAddr::OWN), 0)?;
        maps.routes
            .insert(&Key::new(16, pod(0)), Route::new(0, Route::PODS), 0)?;
        for number in 0..self.size.pods {
            let entry = Pod {
                ifindex: LO,
                mac,
                host_mac: mac,
                flags: 0,
            };
            maps.pods.insert(pod(number), entry, 0)?;
        }
        for number in 1..=self.size.peers {
            let (underlay, index) = (underlay(number), number as u16);
            let entry = Peer {
                underlay,
                source: OWN,
                ifindex: LO,
                mtu: 1480,
                encapsulation: Encapsulation::Ipip as u8,
                flags: Peer::MAC_KNOWN,
                next_hop_mac: mac,
                uplink_mac: mac,
                header_sum: Peer::partial_sum(OWN, underlay, 64, 4),
            };
            maps.peers.set(number, entry, 0)?;
            // As the agent has it: an underlay address, an InternalIP, a range of pods.
            let roles = NodeAddr::new(index, NodeAddr::UNDERLAY);
            maps.node_addrs.insert(underlay, roles, 0)?;
            let internal = address(172, 16, number);
            maps.node_addrs
                .insert(internal, NodeAddr::new(index, 0), 0)?;
            let route = Route::new(index, Route::NODE);
            maps.routes.insert(&Key::new(32, internal), route, 0)?;
            let range = remote_pod(number, 0);
            let route = Route::new(index, Route::PODS);
            maps.routes.insert(&Key::new(24, range), route, 0)?;
        }
        for number in 0..self.size.flows {
            let (source, destination, port) = self.flow(number);
            // Both directions of it are replies of something: the one that is measured always is.
            let (key, from_low) = FlowKey::of(source, port, destination, PORT, 6);
            let from_low = u32::from(!from_low);
            maps.flows.insert(key, Flow { from_low }, 0)?;
        }
        Ok(())
    }

    /// Pod, remote pod and port of the Nth conversation that came out of the host stack.
    fn flow(&self, number: u32) -> (Addr, Addr, [u8; 2]) {
        let own = pod(number % self.size.pods);
        let peer = 1 + number % self.size.peers;
        let [_, high, low, host] = number.to_be_bytes();
        (own, remote_pod(peer, host.max(1)), [0x40 | high, low])
    }

    /// Mean ns of the program over some packets.
    fn sample(&self, program: &str, traffic: Traffic) -> Result<f64> {
        let mut random = Random(0x1234_5678 + u64::from(PACKETS));
        self.timed(program, || {
            let number = random.next();
            let (own, remote, port, remote_port) = match traffic {
                Traffic::One => (pod(1), remote_pod(1, 2), [0x90, 1], PORT),
                Traffic::Spread => (
                    pod(number % self.size.pods),
                    remote_pod(1 + number % self.size.peers, 2),
                    [0x90 | (number >> 24) as u8 & 0xf, (number >> 16) as u8],
                    PORT,
                ),
                Traffic::Replies => {
                    let (own, remote, port) = self.flow(number % self.size.flows);
                    (own, remote, port, PORT)
                }
            };
            if program == programs::FROM_POD {
                segment(own, port, remote, remote_port)
            } else {
                let peer = if traffic == Traffic::One {
                    1
                } else {
                    1 + match traffic {
                        Traffic::Replies => number % self.size.flows % self.size.peers,
                        _ => number % self.size.peers,
                    }
                };
                let inner = &segment(remote, remote_port, own, port)[14..];
                ipip(underlay(peer), inner)
            }
        })
    }

    /// What timing itself takes: the program passes an ARP packet at once.
    fn overhead(&self) -> Result<f64> {
        let mut frame = vec![0_u8; 60];
        frame[12..14].copy_from_slice(&[8, 6]);
        let samples = (0..9)
            .map(|_| self.timed(programs::FROM_POD, || frame.clone()))
            .collect::<Result<Vec<_>>>()?;
        median(samples).context("no sample")
    }

    fn timed(&self, name: &str, mut packet: impl FnMut() -> Vec<u8>) -> Result<f64> {
        let path = self.pins.programs().join(name);
        let program = SchedClassifier::from_pin(&path)?;
        let packets: Vec<Vec<u8>> = (0..PACKETS).map(|_| packet()).collect();
        let before = ProgramInfo::from_pin(&path)?;
        for packet in &packets {
            program.test_run(TestRunOptions {
                data_in: Some(packet),
                ..TestRunOptions::new()
            })?;
        }
        let after = ProgramInfo::from_pin(&path)?;
        let time = after.run_time() - before.run_time();
        Ok(time.as_nanos() as f64 / (after.run_count() - before.run_count()) as f64)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.pins) {
            eprintln!("removing the pins of a measurement: {error}");
        }
    }
}

/// The server's port in every conversation.
const PORT: [u8; 2] = [0, 80];

fn address(a: u8, b: u8, number: u32) -> Addr {
    let [_, carry, high, low] = number.to_be_bytes();
    Addr([a, b + carry, high, low])
}

fn pod(number: u32) -> Addr {
    address(10, 42, number + 2)
}

fn underlay(peer: u32) -> Addr {
    address(100, 64, peer)
}

fn remote_pod(peer: u32, host: u8) -> Addr {
    let [_, _, high, low] = peer.to_be_bytes();
    Addr([10, 64 + high, low, host])
}

/// A TCP segment without data in a frame.
fn segment(source: Addr, source_port: [u8; 2], destination: Addr, port: [u8; 2]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(source.0, destination.0, 64)
        .tcp(
            u16::from_be_bytes(source_port),
            u16::from_be_bytes(port),
            1,
            1024,
        );
    written(|frame| builder.write(frame, &[0; 64]))
}

/// IP-in-IP from a peer in a frame.
fn ipip(source: Addr, inner: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ipv4(source.0, OWN.0, 64);
    written(|frame| builder.write(frame, IpNumber::IPV4, inner))
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("a short packet can be written");
    frame
}

/// Numbers in no order, the same in every run (Knuth's multiplier for 64 bits).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

/// A line of the result: ns by size.
struct Row {
    name: String,
    many: Many,
    cells: Vec<(u32, f64)>,
}

impl Row {
    fn json(&self, overhead: f64) -> Value {
        let cells = self.cells.iter();
        let ns: serde_json::Map<String, Value> = cells
            .map(|(size, ns)| (size.to_string(), json!(ns - overhead)))
            .collect();
        json!({
            "metric": self.name,
            "unit": "ns",
            "grows": format!("{:?}", self.many).to_lowercase(),
            "ns": ns,
            "last_to_first": self.growth(overhead),
        })
    }

    fn growth(&self, overhead: f64) -> f64 {
        let ends = self.cells.first().zip(self.cells.last());
        ends.map_or(f64::NAN, |(first, last)| {
            (last.1 - overhead) / (first.1 - overhead)
        })
    }
}

fn table(rows: &[Row], overhead: f64) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["", "grows", "ns a packet", "growth"]);
    for row in rows {
        let cells = row.cells.iter();
        let cells: Vec<String> = cells
            .map(|(size, ns)| format!("{size}: {:.0}", ns - overhead))
            .collect();
        table.add_row([
            row.name.clone(),
            format!("{:?}", row.many).to_lowercase(),
            cells.join("   "),
            format!("{:.2}", row.growth(overhead)),
        ]);
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_peers_share_an_address_and_no_remote_pod_is_local() {
        let mut seen = std::collections::BTreeSet::new();
        for peer in 1..=5_000 {
            for address in [underlay(peer), remote_pod(peer, 2), address(172, 16, peer)] {
                assert!(seen.insert(address.0), "{address:?}");
                assert_ne!(address.0[..2], [10, 42]);
            }
        }
        assert_eq!(pod(49_999).0, [10, 42, 195, 81]);
    }
}
