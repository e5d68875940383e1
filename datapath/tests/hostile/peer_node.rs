//! Large packets in a tunnel. No packet socket can send them as one, so another node's programs encapsulate what a pod
//! behind it sends. They arrive on the uplink whole, as GRO leaves them behind a network card.
//!
//! ```text
//! b-eth0 ── b-pod [from_pod] ─► far ── uplink [from_uplink] ─► pod, or ipip0
//! ```

use crate::{
    campaign::Code,
    generate::{chance, pick},
    ipv4::{fill_checksum, with_ttl},
    model::{Circumstances, judge},
    wire::{Wire, segments, veth},
    world::{LIMITED, MTU, NO_POD, OWN, PEERS, POD, POD_2, STRANGER, by_underlay},
};
use anyhow::{Context, Result};
use fastrand::Rng;
use ipip_abi::{
    Addr, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, Pod, Program, Route, RouteKey,
};
use ipip_datapath::{AttachMode, Maps, Programs, load};
use ipip_netlink::set_sysctl;
use ipip_testkit::{
    frames::{FrameSender, Handling},
    node_maps::{NodeMaps, NodePeer, PeerPath, add_route},
    scratch::ScratchPins,
    test_ns::TestNs,
};

/// Sources that the pod may use on its node. The node under test rejects most of them.
fn sources() -> Vec<Addr> {
    let pods = PEERS.iter().map(|peer| peer.pod());
    let internal = PEERS.iter().filter_map(|peer| peer.internal_ip);
    pods.chain(internal).chain([STRANGER]).collect()
}

/// A packet that the pod sends, and the path on which its node sends it on.
#[derive(Clone, Debug)]
pub struct Large {
    /// Only its length matters for the data.
    pub head: Vec<u8>,
    pub data: usize,
    pub segment: u16,
    pub encapsulation: Encapsulation,
    pub underlay: Addr,
}

/// The other node, whose tunnel packets arrive on the uplink.
pub struct PeerNode {
    wire: Wire,
    maps: Maps,
    pod: FrameSender,
    path: PeerPath,
    _pins: ScratchPins,
    _inside: TestNs,
}

impl PeerNode {
    pub fn new(wire: Wire) -> Result<Self> {
        let inside = TestNs::new();
        inside.run(|| set_sysctl("net.ipv6.conf.default.disable_ipv6", "1"))??;
        let (ifindex, eth0) = veth(&wire.far, "b-pod", &inside, "b-eth0")?;
        let pins = ScratchPins::new();
        load(&pins, AttachMode::Auto)?;
        let mut maps = Maps::open(&pins)?;
        let path = PeerPath {
            next_hop: Some(Mac([2, 0xbb, 0, 0, 0, 1])),
            mtu: MTU,
            ..PeerPath::new(OWN, Encapsulation::Ipip, wire.far_index)
        };
        let range = |first: Addr| RouteKey::new(first, 24);
        let mut node = NodeMaps::new("b", STRANGER, range(PEERS[0].pods));
        for source in sources() {
            let entry = Pod {
                ifindex,
                ..Pod::default()
            };
            node = node.pod(source, entry);
        }
        node.peer(
            NodePeer::new(1, "a", range(POD.block()))
                .path(path)
                .internal_ip(OWN),
        )
        .write(&mut maps)?;
        // It sends to any address through the tunnel.
        add_route(
            &mut maps,
            RouteKey::new(Addr::ZERO, 0),
            Route::new(1, Route::PODS),
        )?;
        wire.far
            .run(|| Programs::open(&pins, AttachMode::Auto)?.attach_pod("b-pod"))??;
        Ok(Self {
            pod: inside.run(|| FrameSender::open(eth0))??,
            wire,
            maps,
            path,
            _pins: pins,
            _inside: inside,
        })
    }

    /// A random large packet, in most cases from the peer's own pod to a local one.
    pub fn large(&self, rng: &mut Rng) -> Large {
        let peer = loop {
            let peer = pick(rng, &PEERS);
            if peer.path.is_some() {
                break peer;
            }
        };
        let source = match chance(rng, 80) {
            true => peer.pod(),
            false => *pick(rng, &sources()),
        };
        let destination = match rng.u8(..10) {
            0 => *pick(
                rng,
                &[NO_POD, POD_2, Addr([203, 0, 113, 9]), Addr([224, 0, 0, 1])],
            ),
            1 => LIMITED,
            2 => OWN,
            _ => POD,
        };
        let underlay = match chance(rng, 90) {
            true => peer.underlay().unwrap_or(STRANGER),
            false => STRANGER,
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, rng.u8(..), 0, 40, rng.u8(..), 0, 0x40, 0]);
        // It is decremented once before it arrives.
        frame.extend([*pick(rng, &[2, 3, 64, 64, 255]), 6, 0, 0]);
        frame.extend(source.0);
        frame.extend(destination.0);
        frame.extend([
            0x9c,
            0x40,
            0,
            80,
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            5 << 4,
            0x10,
            1,
            0,
            0,
            0,
            0,
            0,
        ]);
        fill_checksum(&mut frame[14..], 20);
        let (segment, _) = segments(rng, &mut frame, self.wire.largest).expect("a TCP packet");
        Large {
            head: frame[..54].to_vec(),
            data: frame.len() - 54,
            segment: segment.min(MTU - 40),
            encapsulation: *pick(rng, &[Encapsulation::Ipip, Encapsulation::Udp]),
            underlay,
        }
    }

    /// Sends a packet, and compares what happens with the model.
    pub fn check(&mut self, large: &Large) -> Result<()> {
        self.path.encapsulation = large.encapsulation;
        self.maps.peers.set(1, self.path.entry(large.underlay), 0)?;
        let mut frame = large.head.clone();
        frame.resize(54 + large.data, 7);
        let handling = Handling {
            tcp_segments: Some((large.segment, 14 + 20)),
            ..Handling::default()
        };
        self.pod
            .send(&frame, handling)
            .context("cannot send the packet")?;
        self.pod.send(&marker(), Handling::default())?;
        let reason = match by_underlay(large.underlay) {
            Some(_) => DropReason::InnerSourceNotOfPeer,
            None => DropReason::UnknownPeer,
        };
        let marker = [Code::Drop(reason), Code::Counter(Counter::EventSuppressed)];
        let at = Circumstances {
            is_gso: true,
            ..Circumstances::default()
        };
        let named = judge(Program::FromUplink, &encapsulated(&frame, large), at);
        self.wire.compare(&named, &marker)
    }
}

/// A small packet on the same way, which is dropped for its source.
fn marker() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(STRANGER.0);
    frame.extend(POD.0);
    frame.extend([0; 20]);
    fill_checksum(&mut frame[14..], 20);
    frame
}

/// The frame that arrives on the uplink. The outer header has the inner one's DSCP and ECN (RFC 2983, RFC 6040).
fn encapsulated(frame: &[u8], large: &Large) -> Vec<u8> {
    let inner = with_ttl(&frame[14..], frame[14 + 8] - 1);
    let (protocol, headers) = match large.encapsulation {
        Encapsulation::Udp => (17, 28),
        _ => (4, 20),
    };
    // 0 with BIG TCP (decision 0008).
    let len = |bytes: usize| u16::try_from(bytes).unwrap_or(0).to_be_bytes();
    let mut outer = frame[..14].to_vec();
    outer.extend([0x45, inner[1]]);
    outer.extend(len(headers + inner.len()));
    outer.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    outer.extend(large.underlay.0);
    outer.extend(OWN.0);
    fill_checksum(&mut outer[14..], 20);
    if headers == 28 {
        outer.extend(0xc000_u16.to_be_bytes());
        outer.extend(DEFAULT_UDP_PORT.to_be_bytes());
        outer.extend(len(8 + inner.len()));
        outer.extend([0, 0]);
    }
    outer.extend(inner);
    outer
}
