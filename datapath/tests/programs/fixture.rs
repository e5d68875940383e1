//! A node whose maps are filled as an agent fills them, with its programs ready to be run.

use crate::packets::{Ip, frame};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use ipip_abi::{
    Addr, Config, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, Peer, Pod, Program,
    Route, RouteKey, wire::PROTO_IPIP,
};
use ipip_datapath::{AttachMode, Maps, Pins, load};
use ipip_testkit::{
    node_maps::{NodeMaps, NodePeer, PeerPath, add_route},
    scratch::ScratchPins,
};
use std::{collections::BTreeMap, net::Ipv4Addr};

/// `TC_ACT_UNSPEC`: the packet goes on to the next program or the kernel.
pub const PASS: i32 = -1;
/// `TC_ACT_SHOT`.
pub const DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: i32 = 7;

/// This node: the address at which it receives tunnel packets.
pub const OWN: &str = "10.0.0.11";
/// A pod of this node, on the interface of the test runs (`lo`).
pub const POD: &str = "10.42.1.2";
/// Another pod of this node.
pub const POD_2: &str = "10.42.1.3";
/// An address of this node's range that no pod has.
pub const NO_POD: &str = "10.42.1.99";
/// Peer B, reached by `ipip` with a known next hop: its underlay address, InternalIP and a pod.
pub const B: &str = "203.0.113.21";
pub const B_INTERNAL: &str = "10.0.0.21";
pub const B_POD: &str = "10.42.2.2";
/// Peer C, reached by `udp`; the next hop is not known.
pub const C: &str = "203.0.113.31";
pub const C_POD: &str = "10.42.3.2";
/// Peer D, reached by `direct` with a known next hop.
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

/// Interface index of `lo`, on which `BPF_PROG_TEST_RUN` runs the programs.
const LO: u32 = 1;

/// The result of a program's run on a packet.
pub struct Outcome {
    pub verdict: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Every counter and drop reason that changed, by name, with the difference.
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

/// The node under test.
pub struct Node {
    pins: ScratchPins,
    pub maps: Maps,
}

#[expect(
    clippy::wrong_self_convention,
    reason = "methods are named after the programs that they run"
)]
impl Node {
    pub fn new() -> Self {
        let pins = ScratchPins::new();
        load(&pins, AttachMode::Auto).expect("the datapath loads (needs root and bpffs)");
        let mut maps = Maps::open(&pins).expect("the maps open");
        node_maps().write(&mut maps).expect("the maps have room");
        Self { pins, maps }
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Changes the settings.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.maps.config.get(&0, 0).unwrap();
        change(&mut config);
        self.maps.config.set(0, config, 0).unwrap();
    }

    pub fn route(&mut self, prefix: &str, len: u32, peer: u16, kind: u8) {
        let prefix = RouteKey::new(addr(prefix), len);
        add_route(&mut self.maps, prefix, Route::new(peer, kind)).unwrap();
    }

    /// Runs a program on an IP packet in a frame.
    pub fn run(&self, program: Program, packet: &[u8]) -> Outcome {
        self.run_frame(program, &frame(packet))
    }

    /// Runs a program on an IP packet that is a GSO packet of no type that the kernel can encapsulate.
    pub fn run_gso(&self, program: Program, packet: &[u8], gso_size: u32) -> Outcome {
        /// `struct __sk_buff`, and its field `gso_size`.
        const LEN: usize = 192;
        const GSO_SIZE: usize = 176;
        let mut context = [0; LEN];
        context[GSO_SIZE..][..4].copy_from_slice(&gso_size.to_ne_bytes());
        self.run_in(program, &frame(packet), Some(&context))
    }

    /// Runs a program on a frame.
    pub fn run_frame(&self, program: Program, frame: &[u8]) -> Outcome {
        self.run_in(program, frame, None)
    }

    fn run_in(&self, program: Program, frame: &[u8], context: Option<&[u8]>) -> Outcome {
        let path = self.pins.program(program);
        let program = SchedClassifier::from_pin(path).expect("the program is pinned");
        let before = self.counts();
        let mut out = vec![0; frame.len() + 64];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: context,
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

    pub fn from_far_end(&self, packet: &Ip) -> Outcome {
        self.run(Program::FromFarEnd, &packet.bytes())
    }

    pub fn to_pod(&self, packet: &Ip) -> Outcome {
        self.run(Program::ToPod, &packet.bytes())
    }

    /// A packet that arrives on an uplink without a tunnel.
    pub fn from_uplink(&self, packet: &Ip) -> Outcome {
        self.run(Program::FromUplink, &packet.bytes())
    }

    /// A packet that arrives on an uplink inside IP-in-IP from peer B.
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

fn node_maps() -> NodeMaps {
    let pod = Pod {
        ifindex: LO,
        mac: POD_MAC,
        host_mac: POD_HOST_MAC,
        flags: 0,
    };
    let pod_2 = Pod {
        ifindex: LO + 1,
        ..pod
    };
    let range = |first: &str| RouteKey::new(addr(first), 24);
    let path = |underlay: &str, encapsulation| PeerPath {
        uplink_mac: UPLINK_MAC,
        mtu: PATH_MTU,
        ..PeerPath::new(addr(underlay), encapsulation, LO)
    };
    let with_next_hop = |path| PeerPath {
        next_hop: Some(NEXT_HOP_MAC),
        ..path
    };
    let b = NodePeer::new(1, "b", range("10.42.2.0"))
        .path(with_next_hop(path(B, Encapsulation::Ipip)))
        .internal_ip(addr(B_INTERNAL));
    let c = NodePeer::new(2, "c", range("10.42.3.0")).path(path(C, Encapsulation::Udp));
    let d = NodePeer::new(3, "d", range("10.42.4.0"))
        .path(with_next_hop(path(D, Encapsulation::Direct)))
        .internal_ip(addr(D));
    let e = NodePeer::new(4, "e", range("10.42.5.0"));
    NodeMaps::new("a", addr(OWN), range("10.42.1.0"))
        .configure(|config| {
            config.ipip0_ifindex = LO;
            config.ipip0_mac = IPIP0_MAC;
            // So many that the rate limit suppresses no event.
            config.events_per_second = 1_000_000;
        })
        .pod(addr(POD), pod)
        .pod(addr(POD_2), pod_2)
        .peer(b)
        .peer(c)
        .peer(d)
        .peer(e)
}

/// IP-in-IP around an inner packet.
pub fn ipip(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    Ip::new(source, destination, PROTO_IPIP)
        .payload(inner)
        .bytes()
}

/// Foo-over-UDP around an inner packet.
pub fn fou(source: &str, destination: &str, inner: &[u8]) -> Vec<u8> {
    Ip::udp(source, 50_000, destination, DEFAULT_UDP_PORT, inner).bytes()
}

/// Encapsulates an inner packet; takes outer source, outer destination and the packet.
pub type Wrap = fn(&str, &str, &[u8]) -> Vec<u8>;
/// Both encapsulations with an outer header.
pub const WRAPS: [Wrap; 2] = [ipip, fou];

pub fn addr(address: &str) -> Addr {
    Addr::from(address.parse::<Ipv4Addr>().expect("an IPv4 address"))
}
