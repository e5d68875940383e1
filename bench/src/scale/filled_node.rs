//! A node's datapath whose maps have a given number of entries, and the time of its programs.

use super::{
    PACKETS, Pattern,
    packets::{OWN, PORT, address, arp, ipip, pod, remote_pod, segment, underlay},
};
use crate::statistics::Summary;
use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TestRun, TestRunOptions};
use ipip_abi::{Addr, Counter, Encapsulation, Mac, Pod, Program, RouteKey};
use ipip_datapath::{AttachMode, Maps, Pins, load, remove};
use ipip_testkit::node_maps::{NodeMaps, NodePeer, PeerPath};

/// Interface index of `lo`, from which test runs come.
const LO: u32 = 1;
/// Verdict of a packet that is sent through an interface, `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const REDIRECT: i32 = 7;
/// Verdict of a packet that goes on to the host stack, `TC_ACT_UNSPEC` of linux/pkt_cls.h.
const PASS: i32 = -1;
/// Every interface's MAC.
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// How many entries a node's maps have.
#[derive(Clone, Copy, Debug)]
pub struct MapSizes {
    pub peers: u32,
    pub pods: u32,
    pub flows: u32,
}

/// The ends of a packet.
pub struct Conversation {
    /// The pod of the node.
    pub own: Addr,
    /// The peer's index.
    pub peer: u32,
    /// The peer's pod.
    pub remote: Addr,
    /// The pod's port, big-endian; the other end's is [`PORT`].
    port: [u8; 2],
}

/// A node's datapath with filled maps. Dropping it removes its pins.
pub struct FilledNode {
    pub sizes: MapSizes,
    pins: Pins,
}

impl FilledNode {
    /// Loads the datapath and fills its maps as the agent and the plugin do.
    pub fn new(sizes: MapSizes) -> Result<Self> {
        let name = format!(
            "/sys/fs/bpf/ipip-scale-{}-{}-{}-{}",
            std::process::id(),
            sizes.peers,
            sizes.pods,
            sizes.flows
        );
        let node = Self {
            sizes,
            pins: Pins::new(name),
        };
        load(&node.pins, AttachMode::Auto)?;
        node.maps().write(&mut Maps::open(&node.pins)?)?;
        node.record_flows()?;
        Ok(node)
    }

    fn maps(&self) -> NodeMaps {
        let range = RouteKey::new(Addr([10, 42, 0, 0]), 16);
        let mut maps = NodeMaps::new("own", OWN, range).configure(|config| {
            config.ipip0_ifindex = LO;
            config.ipip0_mac = MAC;
            config.events_per_second = 1;
        });
        for number in 0..self.sizes.pods {
            let entry = Pod {
                ifindex: LO,
                mac: MAC,
                host_mac: MAC,
                flags: 0,
            };
            maps = maps.pod(pod(number), entry);
        }
        for number in 1..=self.sizes.peers {
            maps = maps.peer(peer(number));
        }
        maps
    }

    /// Lets the programs record the flows. Flows with an even number go from the host stack to the pod, the
    /// others from the pod to the peer.
    fn record_flows(&self) -> Result<()> {
        let to_pod = self.program(Program::ToPod)?;
        let from_host = self.program(Program::FromHost)?;
        for number in 0..self.sizes.flows {
            let Conversation {
                own, remote, port, ..
            } = self.flow(number);
            if number.is_multiple_of(2) {
                run(&to_pod, &segment(remote, PORT, own, port))?;
            } else {
                run(&from_host, &segment(own, port, remote, PORT))?;
            }
        }
        let recorded = Maps::open(&self.pins)?.tally_counter(Counter::FlowRecorded)?;
        ensure!(
            recorded.packets == u64::from(self.sizes.flows),
            "{} flows are recorded instead of {}",
            recorded.packets,
            self.sizes.flows
        );
        Ok(())
    }

    /// The flow with this number.
    fn flow(&self, number: u32) -> Conversation {
        let own = pod(number % self.sizes.pods);
        let peer = 1 + number % self.sizes.peers;
        let [_, high, low, host] = number.to_be_bytes();
        Conversation {
            own,
            peer,
            remote: remote_pod(peer, host.max(1)),
            port: [0x40 | high, low],
        }
    }

    /// The conversations of a sample; they are the same for each sample.
    pub fn conversations(&self, program: Program, pattern: Pattern) -> Vec<Conversation> {
        let mut random = Random(0x1234_5678 + u64::from(PACKETS));
        (0..PACKETS)
            .map(|_| self.conversation(program, pattern, random.next()))
            .collect()
    }

    fn conversation(&self, program: Program, pattern: Pattern, number: u32) -> Conversation {
        match pattern {
            Pattern::One => Conversation {
                own: pod(1),
                peer: 1,
                remote: remote_pod(1, 2),
                port: [0x90, 1],
            },
            Pattern::Spread => {
                let peer = 1 + number % self.sizes.peers;
                Conversation {
                    own: pod(number % self.sizes.pods),
                    peer,
                    remote: remote_pod(peer, 2),
                    port: [0x90 | (number >> 24) as u8 & 0xf, (number >> 16) as u8],
                }
            }
            Pattern::Replies => {
                // A reply has the direction opposite to that of its flow.
                let from_uplink = u32::from(program == Program::FromUplink);
                self.flow((number % self.sizes.flows) & !1 | from_uplink)
            }
        }
    }

    /// Mean nanoseconds of the program over the packets of these conversations.
    ///
    /// # Errors
    /// A packet gets a verdict that does not belong to the path of `pattern`, for example because it is dropped.
    pub fn sample(
        &self,
        program: Program,
        pattern: Pattern,
        conversations: &[Conversation],
    ) -> Result<f64> {
        // `from_uplink` redirects on the slow path too: to `ipip0`.
        let verdict = if pattern == Pattern::Replies && program == Program::FromPod {
            PASS
        } else {
            REDIRECT
        };
        let packets = conversations.iter().map(|conversation| {
            let Conversation {
                own,
                peer,
                remote,
                port,
            } = *conversation;
            if program == Program::FromPod {
                segment(own, port, remote, PORT)
            } else {
                ipip(underlay(peer), &segment(remote, PORT, own, port)[14..])
            }
        });
        self.timed(program, packets.collect(), verdict)
    }

    /// Runs `from_pod` with a packet that it does not handle.
    pub fn foreign_packet(&self) -> Result<impl Fn() -> Result<()> + use<>> {
        let program = self.program(Program::FromPod)?;
        Ok(move || run(&program, &arp()).map(drop))
    }

    /// Nanoseconds that the kernel's timing itself takes.
    pub fn overhead(&self) -> Result<f64> {
        let samples = (0..9)
            .map(|_| self.timed(Program::FromPod, vec![arp(); PACKETS as usize], PASS))
            .collect::<Result<Vec<_>>>()?;
        Ok(Summary::of(samples).context("no sample")?.median)
    }

    fn timed(&self, program: Program, packets: Vec<Vec<u8>>, verdict: i32) -> Result<f64> {
        let path = self.pins.program(program);
        let pinned = SchedClassifier::from_pin(&path)?;
        let before = ProgramInfo::from_pin(&path)?;
        for packet in &packets {
            let found = run(&pinned, packet)?;
            ensure!(
                found == verdict,
                "{program} returned {found} for a packet instead of {verdict}"
            );
        }
        let after = ProgramInfo::from_pin(&path)?;
        let time = after.run_time() - before.run_time();
        Ok(time.as_nanos() as f64 / (after.run_count() - before.run_count()) as f64)
    }

    fn program(&self, program: Program) -> Result<SchedClassifier> {
        Ok(SchedClassifier::from_pin(self.pins.program(program))?)
    }
}

impl Drop for FilledNode {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.pins) {
            eprintln!("cannot remove the pins of a measurement: {error}");
        }
    }
}

/// A peer with an underlay address, an InternalIP and a pod range.
fn peer(number: u32) -> NodePeer {
    let path = PeerPath {
        uplink_mac: MAC,
        next_hop: Some(MAC),
        ..PeerPath::new(underlay(number), Encapsulation::Ipip, LO)
    };
    let range = RouteKey::new(remote_pod(number, 0), 24);
    NodePeer::new(number as u16, &format!("peer-{number}"), range)
        .path(path)
        .internal_ip(address(172, 16, number))
}

/// Runs the program once and returns its verdict.
fn run(program: &SchedClassifier, packet: &[u8]) -> Result<i32> {
    let result = program.test_run(TestRunOptions {
        data_in: Some(packet),
        ..TestRunOptions::new()
    })?;
    Ok(result.return_value.cast_signed())
}

/// Pseudo-random numbers, the same in every run (a linear congruential generator with Knuth's constants).
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
