//! A node whose maps are filled as the agent would, with the programs ready to be run.

use crate::packets::{Ip, frame};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use ipip_abi::{
    Addr, Config, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, NodeAddr, Peer, Pod,
    Program, Route,
};
use ipip_datapath::{AttachMode, Maps, Pins, load, remove};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

/// `TC_ACT_UNSPEC`: the packet goes on to the next program or the kernel.
pub const PASS: i32 = -1;
/// `TC_ACT_SHOT`.
pub const DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: i32 = 7;

/// This node: the address at which it takes tunnel packets.
pub const OWN: &str = "10.0.0.11";
/// A pod of this node, on the interface that test runs come from (`lo`).
pub const POD: &str = "10.42.1.2";
/// Another pod of this node.
pub const POD_2: &str = "10.42.1.3";
/// An address of this node's range that no pod has.
pub const NO_POD: &str = "10.42.1.99";
/// Peer B, reached by `ipip` with a known next hop: its underlay, InternalIP and a pod.
pub const B: &str = "203.0.113.21";
pub const B_INTERNAL: &str = "10.0.0.21";
pub const B_POD: &str = "10.42.2.2";
/// Peer C, reached by `udp`, next hop not known.
pub const C: &str = "203.0.113.31";
pub const C_POD: &str = "10.42.3.2";
/// Peer D, `direct`.
pub const D: &str = "10.0.0.12";
pub const D_POD: &str = "10.42.4.2";
/// Peer E, which has no path.
pub const E_POD: &str = "10.42.5.2";
/// Neither a node nor a pod.
pub const STRANGER: &str = "198.51.100.66";
/// A path's MTU.
pub const PATH_MTU: u16 = 1480;

pub const POD_MAC: Mac = Mac([2, 0xaa, 0, 0, 0, 2]);
pub const POD_HOST_MAC: Mac = Mac([2, 0xaa, 0, 0, 0, 1]);
pub const NEXT_HOP_MAC: Mac = Mac([2, 0xbb, 0, 0, 0, 2]);
pub const UPLINK_MAC: Mac = Mac([2, 0xbb, 0, 0, 0, 1]);
pub const IPIP0_MAC: Mac = Mac([2, 0xcc, 0, 0, 0, 1]);

/// Interface index of `lo`, from which `BPF_PROG_TEST_RUN` sends.
const LO: u32 = 1;

/// What a program did with a packet.
pub struct Outcome {
    pub verdict: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Every counter and drop reason that moved, by name, and by how much.
    pub moved: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// Asserts a drop for `reason`, and that nothing else was counted.
    #[track_caller]
    pub fn is_dropped(&self, reason: DropReason) {
        assert_eq!(self.moved, BTreeMap::from([(reason.name(), 1)]));
        assert_eq!(self.verdict, DROP);
    }

    /// Asserts the verdict and exactly the counters that moved by one.
    #[track_caller]
    pub fn is(&self, verdict: i32, counters: &[Counter]) {
        let expected = counters.iter().map(|counter| (counter.name(), 1)).collect();
        assert_eq!(self.moved, expected);
        assert_eq!(self.verdict, verdict);
    }

    /// The IP packet in the frame.
    pub fn packet(&self) -> &[u8] {
        &self.frame[14..]
    }
}

/// The node.
pub struct Node {
    pins: Pins,
    pub maps: Maps,
}

#[expect(
    clippy::wrong_self_convention,
    reason = "methods are named after the programs that they run"
)]
impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = Pins::new(format!(
            "/sys/fs/bpf/ipip-test-{}-{number}",
            std::process::id()
        ));
        let loaded = load(&pins, AttachMode::Auto);
        if loaded.is_err() {
            // There is no node yet whose end would remove them.
            remove(&pins).expect("the pins of a datapath that did not load can be removed");
        }
        loaded.expect("the datapath loads (needs root and bpffs)");
        let maps = Maps::open(&pins).expect("the maps open");
        let mut node = Self { pins, maps };
        node.fill();
        node
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    fn fill(&mut self) {
        self.configure(|_| {});
        self.own_address(OWN);
        self.route("10.42.1.0", 24, 0, Route::PODS);
        let pod = Pod {
            ifindex: LO,
            mac: POD_MAC,
            host_mac: POD_HOST_MAC,
            flags: 0,
        };
        self.maps.pods.insert(addr(POD), pod, 0).unwrap();
        self.maps
            .pods
            .insert(
                addr(POD_2),
                Pod {
                    ifindex: LO + 1,
                    ..pod
                },
                0,
            )
            .unwrap();
        self.peer(1, B, "10.42.2.0", Encapsulation::Ipip, Peer::MAC_KNOWN);
        self.route(B_INTERNAL, 32, 1, Route::NODE);
        self.maps
            .node_addrs
            .insert(addr(B_INTERNAL), NodeAddr::new(1, 0), 0)
            .unwrap();
        self.peer(2, C, "10.42.3.0", Encapsulation::Udp, 0);
        self.peer(3, D, "10.42.4.0", Encapsulation::Direct, Peer::MAC_KNOWN);
        self.route(D, 32, 3, Route::NODE);
        self.peer(4, "203.0.113.51", "10.42.5.0", Encapsulation::None, 0);
    }

    /// Changes the settings.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config {
            ipip0_ifindex: LO,
            ipip0_mac: IPIP0_MAC,
            udp_port: DEFAULT_UDP_PORT.to_be_bytes(),
            flags: 0,
            // So many that the rate limit does not show among the counters.
            events_per_second: 1_000_000,
            pod_mtu: 1480,
            pod_gso_max: 0,
        };
        change(&mut config);
        self.maps.config.set(0, config, 0).unwrap();
    }

    pub fn own_address(&mut self, address: &str) {
        self.maps
            .node_addrs
            .insert(addr(address), NodeAddr::new(0, NodeAddr::OWN), 0)
            .unwrap();
    }

    pub fn route(&mut self, prefix: &str, len: u32, peer: u16, kind: u8) {
        let key = aya::maps::lpm_trie::Key::new(len, addr(prefix));
        self.maps
            .routes
            .insert(&key, Route::new(peer, kind), 0)
            .unwrap();
    }

    pub fn peer(
        &mut self,
        index: u16,
        underlay: &str,
        pods: &str,
        encapsulation: Encapsulation,
        flags: u8,
    ) {
        let peer = Peer {
            underlay: addr(underlay),
            source: addr(OWN),
            ifindex: LO,
            mtu: PATH_MTU,
            encapsulation: encapsulation as u8,
            flags,
            next_hop_mac: NEXT_HOP_MAC,
            uplink_mac: UPLINK_MAC,
            header_sum: Peer::partial_sum(addr(OWN), addr(underlay), encapsulation),
        };
        self.maps.peers.set(u32::from(index), peer, 0).unwrap();
        let roles = NodeAddr::new(index, NodeAddr::UNDERLAY);
        self.maps
            .node_addrs
            .insert(addr(underlay), roles, 0)
            .unwrap();
        self.route(pods, 24, index, Route::PODS);
    }

    /// Runs a program on an IP packet in a frame.
    pub fn run(&self, program: Program, packet: &[u8]) -> Outcome {
        self.run_frame(program, &frame(packet))
    }

    /// Runs a program on a frame.
    pub fn run_frame(&self, program: Program, frame: &[u8]) -> Outcome {
        let path = self.pins.program(program);
        let program = SchedClassifier::from_pin(path).expect("the program is pinned");
        let before = self.counts();
        let mut out = vec![0; frame.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::new()
            })
            .expect("the program runs");
        out.truncate(result.data_size_out as usize);
        let moved = self.moved_since(&before);
        Outcome {
            verdict: result.return_value as i32,
            frame: out,
            moved,
        }
    }

    pub fn from_pod(&self, packet: &Ip) -> Outcome {
        self.run(Program::FromPod, &packet.bytes())
    }

    pub fn from_host(&self, packet: &Ip) -> Outcome {
        self.run(Program::FromHost, &packet.bytes())
    }

    pub fn to_pod(&self, packet: &Ip) -> Outcome {
        self.run(Program::ToPod, &packet.bytes())
    }

    /// What arrives on an uplink in no tunnel.
    pub fn from_uplink(&self, packet: &Ip) -> Outcome {
        self.run(Program::FromUplink, &packet.bytes())
    }

    /// What arrives on an uplink inside IP-in-IP from peer B.
    pub fn from_b(&self, inner: &Ip) -> Outcome {
        self.run(Program::FromUplink, &ipip(B, OWN, &inner.bytes()))
    }

    /// Raises every path's MTU.
    pub fn raise_mtu(&mut self, mtu: u16) {
        for index in 1..=4 {
            let peer = self.maps.peers.get(&index, 0).unwrap();
            self.maps.peers.set(index, Peer { mtu, ..peer }, 0).unwrap();
        }
    }

    /// The counters and drop reasons that moved since `before`, and by how much.
    pub fn moved_since(&self, before: &BTreeMap<&'static str, u64>) -> BTreeMap<&'static str, u64> {
        self.counts()
            .into_iter()
            .filter_map(|(name, count)| {
                Some((name, count - before[name])).filter(|(_, by)| *by != 0)
            })
            .collect()
    }

    /// Packets of every counter and drop reason, by name.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let counters = Counter::ALL.iter().map(|&counter| {
            (
                counter.name(),
                self.maps.tally_counter(counter).unwrap().packets,
            )
        });
        let drops = DropReason::ALL
            .iter()
            .map(|&reason| (reason.name(), self.maps.tally_drop(reason).unwrap().packets));
        counters.chain(drops).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let removed = remove(&self.pins);
        if !std::thread::panicking() {
            removed.expect("the test's pins can be removed");
        }
    }
}

/// IP-in-IP around an inner packet.
pub fn ipip(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    Ip::new(source, destination, 4).payload(inner).bytes()
}

/// Foo-over-UDP around an inner packet.
pub fn fou(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    Ip::udp(source, 50_000, destination, DEFAULT_UDP_PORT, inner).bytes()
}

/// Both ways to encapsulate.
pub type Wrap = fn(&str, &str, &[u8]) -> Vec<u8>;
pub const WRAPS: [Wrap; 2] = [ipip, fou];

pub fn addr(address: &str) -> Addr {
    Addr::from(address.parse::<Ipv4Addr>().expect("an IPv4 address"))
}
