//! A node's datapath whose maps hold as much as is asked, and the time of its programs.

use super::{
    Traffic, median,
    packets::{OWN, PORT, address, ipip, pod, remote_pod, segment, underlay},
};
use anyhow::{Context, Result, ensure};
use aya::{
    maps::lpm_trie::Key,
    programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions},
};
use ipip_abi::{
    Addr, Config, Counter, DEFAULT_UDP_PORT, Encapsulation, Mac, NodeAddr, Peer, Pod, Route,
    programs,
};
use ipip_datapath::{AttachMode, Maps, Pins, load, remove};

/// From which interface test runs come: `lo`.
const LO: u32 = 1;
/// Packets of one sample.
pub const PACKETS: u32 = 2000;

/// The sizes of a node's maps.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub peers: u32,
    pub pods: u32,
    pub flows: u32,
}

/// Who talks in a packet.
pub struct Conversation {
    /// The pod of the node.
    pub own: Addr,
    /// The peer.
    pub peer: u32,
    /// The peer's pod.
    pub remote: Addr,
    /// The pod's port.
    port: [u8; 2],
}

/// A node's datapath with filled maps.
pub struct Node {
    pub size: Size,
    pins: Pins,
}

impl Node {
    /// Loads it, and fills its maps as an agent and a plugin do.
    pub fn new(size: Size) -> Result<Self> {
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
            pod_gso_max: 0,
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
        self.record_flows()
    }

    /// Has the programs record the flows: that of an even number came out of the stack to the pod, the others
    /// from the pod to the peer.
    fn record_flows(&self) -> Result<()> {
        let [to_pod, from_host] = [programs::TO_POD, programs::FROM_HOST]
            .map(|name| SchedClassifier::from_pin(self.pins.programs().join(name)));
        let (to_pod, from_host) = (to_pod?, from_host?);
        for number in 0..self.size.flows {
            let Conversation {
                own, remote, port, ..
            } = self.flow(number);
            let (program, packet) = match number % 2 {
                0 => (&to_pod, segment(remote, PORT, own, port)),
                _ => (&from_host, segment(own, port, remote, PORT)),
            };
            run(program, &packet)?;
        }
        let recorded = Maps::open(&self.pins)?.tally_counter(Counter::FlowRecorded)?;
        ensure!(
            recorded.packets == u64::from(self.size.flows),
            "{} flows are recorded instead of {}",
            recorded.packets,
            self.size.flows
        );
        Ok(())
    }

    /// The Nth conversation that came out of the host stack.
    fn flow(&self, number: u32) -> Conversation {
        let own = pod(number % self.size.pods);
        let peer = 1 + number % self.size.peers;
        let [_, high, low, host] = number.to_be_bytes();
        Conversation {
            own,
            peer,
            remote: remote_pod(peer, host.max(1)),
            port: [0x40 | high, low],
        }
    }

    /// Who talks in the packets of a sample, the same in each.
    pub fn conversations(&self, program: &str, traffic: Traffic) -> Vec<Conversation> {
        let mut random = Random(0x1234_5678 + u64::from(PACKETS));
        (0..PACKETS)
            .map(|_| self.conversation(program, traffic, random.next()))
            .collect()
    }

    fn conversation(&self, program: &str, traffic: Traffic, number: u32) -> Conversation {
        match traffic {
            Traffic::One => Conversation {
                own: pod(1),
                peer: 1,
                remote: remote_pod(1, 2),
                port: [0x90, 1],
            },
            Traffic::Spread => {
                let peer = 1 + number % self.size.peers;
                Conversation {
                    own: pod(number % self.size.pods),
                    peer,
                    remote: remote_pod(peer, 2),
                    port: [0x90 | (number >> 24) as u8 & 0xf, (number >> 16) as u8],
                }
            }
            Traffic::Replies => {
                let of_tunnel = u32::from(program == programs::FROM_UPLINK);
                self.flow((number % self.size.flows) & !1 | of_tunnel)
            }
        }
    }

    /// Mean ns of the program over the packets of these conversations.
    pub fn sample(&self, program: &str, conversations: &[Conversation]) -> Result<f64> {
        let packets = conversations.iter().map(|it| {
            let Conversation {
                own, remote, port, ..
            } = *it;
            match program == programs::FROM_POD {
                true => segment(own, port, remote, PORT),
                false => ipip(underlay(it.peer), &segment(remote, PORT, own, port)[14..]),
            }
        });
        self.timed(program, packets.collect())
    }

    /// Sends a packet that the program passes at once.
    pub fn pass(&self) -> Result<impl Fn() -> Result<()>> {
        let program = SchedClassifier::from_pin(self.pins.programs().join(programs::FROM_POD))?;
        Ok(move || run(&program, &arp()))
    }

    /// What timing itself takes.
    pub fn overhead(&self) -> Result<f64> {
        let samples = (0..9)
            .map(|_| self.timed(programs::FROM_POD, vec![arp(); PACKETS as usize]))
            .collect::<Result<Vec<_>>>()?;
        median(samples).context("no sample")
    }

    fn timed(&self, name: &str, packets: Vec<Vec<u8>>) -> Result<f64> {
        let path = self.pins.programs().join(name);
        let program = SchedClassifier::from_pin(&path)?;
        let before = ProgramInfo::from_pin(&path)?;
        for packet in &packets {
            run(&program, packet)?;
        }
        let after = ProgramInfo::from_pin(&path)?;
        let time = after.run_time() - before.run_time();
        Ok(time.as_nanos() as f64 / (after.run_count() - before.run_count()) as f64)
    }
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[8, 6]);
    frame
}

fn run(program: &SchedClassifier, packet: &[u8]) -> Result<()> {
    program.test_run(TestRunOptions {
        data_in: Some(packet),
        ..TestRunOptions::new()
    })?;
    Ok(())
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.pins) {
            eprintln!("removing the pins of a measurement: {error}");
        }
    }
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
