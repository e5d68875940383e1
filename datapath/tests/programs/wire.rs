//! Packets that `BPF_PROG_TEST_RUN` cannot create: non-linear packets, frames with a VLAN tag, and frames that end
//! within a header. A veth between two namespaces carries them into the attached programs.

use crate::{
    fixture::*,
    packets::{Ip, frame, patched},
};
use ipip_abi::{Counter, DropReason, Pod};
use ipip_datapath::{AttachMode, Programs};
use ipip_netlink::{LinkChange, Netlink, Veth, set_sysctl};
use ipip_testkit::{
    frames::{FrameSender, Handling},
    test_ns::TestNs,
};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

const NEAR: &str = "near";
const FAR: &str = "far";
/// In bytes. Frames larger than a page can stay non-linear.
const MTU: u32 = 9000;
const PAYLOAD: usize = 6000;
/// Longest time that a frame takes through a veth on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The fixture's node with an interface `near`, which receives the frames that its other end `far` sends.
pub struct Wire {
    pub node: Node,
    pub near: TestNs,
    _far: TestNs,
    near_index: u32,
    /// Sends through `far`.
    sender: FrameSender,
}

impl Wire {
    pub fn new() -> Self {
        let (near, far) = (TestNs::new(), TestNs::new());
        // Otherwise packets that the kernel sends by itself would be counted too.
        let quiet = || set_sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        far.run(quiet).unwrap().expect("a namespace without IPv6");
        let mut link = Netlink::open_in(&near).unwrap();
        let veth = Veth {
            name: NEAR,
            peer_name: FAR,
            peer_ns: Some(&far),
            mtu: Some(MTU),
            ..Veth::default()
        };
        link.add_veth(&veth).unwrap();
        let up = |link: &mut Netlink, name| {
            let index = link.link(name).unwrap().expect("the veth").index;
            let change = LinkChange {
                up: Some(true),
                mtu: Some(MTU),
                ..LinkChange::default()
            };
            link.change_link(index, &change).unwrap();
            index
        };
        let near_index = up(&mut link, NEAR);
        let far_index = up(&mut Netlink::open_in(&far).unwrap(), FAR);
        let sender = far.run(|| FrameSender::open(far_index)).unwrap().unwrap();
        let node = Node::new();
        Self {
            node,
            near,
            _far: far,
            near_index,
            sender,
        }
    }

    /// Puts the fixture's pod behind `near`, so that frames of `far` come from the pod.
    pub fn attach_pod(&mut self) {
        let pod = self.node.maps.pods.get(&addr(POD), 0).unwrap();
        let pod = Pod {
            ifindex: self.near_index,
            ..pod
        };
        self.node.maps.pods.insert(addr(POD), pod, 0).unwrap();
        self.attach(|programs| programs.attach_pod(NEAR).unwrap());
    }

    fn attach(&self, attach: impl FnOnce(&mut Programs) + Send) {
        let pins = self.node.pins();
        self.near
            .run(|| attach(&mut Programs::open(pins, AttachMode::Auto).unwrap()))
            .unwrap();
    }

    /// Sends a frame whose linear part is `linear` bytes long, and returns the counters that moved.
    fn send(&self, frame: &[u8], linear: u16) -> BTreeMap<&'static str, u64> {
        let handling = Handling {
            linear,
            ..Handling::default()
        };
        self.send_as(frame, handling)
    }

    /// Sends a frame, and returns the counters that moved.
    pub fn send_as(&self, frame: &[u8], handling: Handling) -> BTreeMap<&'static str, u64> {
        let before = self.node.counts();
        self.sender.send(frame, handling).unwrap();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let moved = self.node.moved_since(&before);
            if !moved.is_empty() {
                return moved;
            }
            assert!(
                Instant::now() < deadline,
                "the frame did not reach the program"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn send_only(&self, frame: &[u8], linear: u16) {
        let handling = Handling {
            linear,
            ..Handling::default()
        };
        self.sender.send(frame, handling).unwrap();
    }
}

/// Lengths of linear parts: after Ethernet, in the outer header, after it, in the inner header, after it, in the ports.
const LINEAR: [u16; 6] = [14, 20, 34, 36, 54, 58];

#[test]
fn a_non_linear_tunnel_packet_gets_the_verdict_of_a_linear_one() {
    let wire = Wire::new();
    wire.attach(|programs| programs.attach_uplink(NEAR).unwrap());
    let inner = |source| Ip::udp(source, 1, POD, 2, &[7; PAYLOAD]);
    let good = inner(B_POD).bytes();
    let mut wrong = good.clone();
    wrong[10] ^= 1;
    let tunnelled = |bytes: &[u8]| ipip(B, OWN, bytes);
    let cases = [
        (tunnelled(&good), Counter::TunnelToPod.name()),
        (fou(B, OWN, &good), Counter::TunnelToPod.name()),
        (
            tunnelled(&inner(C_POD).bytes()),
            DropReason::InnerSourceNotOfPeer.name(),
        ),
        (
            tunnelled(&inner(B_POD).ttl(0).bytes()),
            DropReason::TtlExpired.name(),
        ),
        (tunnelled(&wrong), DropReason::InnerBadChecksum.name()),
        (
            tunnelled(&patched(&good, 2, 0xff)),
            DropReason::InnerLengthBeyondOuter.name(),
        ),
        (ipip(STRANGER, OWN, &good), DropReason::UnknownPeer.name()),
        (
            ipip(B, "10.0.0.99", &good),
            Counter::NotOurTunnelAddress.name(),
        ),
        (
            inner(B_POD).bytes(),
            DropReason::UnencapsulatedPodSource.name(),
        ),
    ];
    for (packet, expected) in cases {
        let whole = frame(&packet);
        for linear in LINEAR.into_iter().chain([whole.len() as u16]) {
            let moved = wire.send(&whole, linear);
            assert_eq!(
                moved,
                BTreeMap::from([(expected, 1)]),
                "{linear} bytes linear"
            );
        }
    }
}

#[test]
fn a_non_linear_packet_of_a_pod_gets_the_verdict_of_a_linear_one() {
    let mut wire = Wire::new();
    wire.node.raise_mtu(MTU as u16);
    wire.attach_pod();
    let packet =
        |source, destination| frame(&Ip::udp(source, 1, destination, 2, &[7; PAYLOAD]).bytes());
    let cases = [
        (packet(POD, B_POD), Counter::PodToTunnel.name()),
        (packet(POD, POD_2), Counter::PodToPod.name()),
        (packet(POD, "8.8.8.8"), Counter::PodToStack.name()),
        (packet(NO_POD, B_POD), DropReason::PodSourceSpoofed.name()),
    ];
    for (whole, expected) in cases {
        for linear in LINEAR.into_iter().chain([whole.len() as u16]) {
            let moved = wire.send(&whole, linear);
            assert_eq!(
                moved,
                BTreeMap::from([(expected, 1)]),
                "{linear} bytes linear"
            );
        }
    }
}

/// The frame with a tag of VLAN 100 (IEEE 802.1Q).
fn tagged(frame: &[u8]) -> Vec<u8> {
    with_tags(frame, &[100])
}

/// The frame with tags of these VLAN IDs and priority 5, outermost first.
fn with_tags(frame: &[u8], ids: &[u8]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    let tags: Vec<u8> = ids.iter().flat_map(|id| [0x81, 0, 5 << 5, *id]).collect();
    [macs, &tags, rest].concat()
}

#[test]
fn a_tagged_frame_on_an_uplink_is_left_to_the_vlan_interface_above() {
    let wire = Wire::new();
    wire.attach(|programs| programs.attach_uplink(NEAR).unwrap());
    let inner = Ip::udp(B_POD, 1, POD, 2, b"x").bytes();
    let whole = frame(&ipip(B, OWN, &inner));
    for ids in [&[100][..], &[100, 0], &[0, 100]] {
        let tagged = with_tags(&whole, ids);
        wire.send_only(&tagged, tagged.len() as u16);
        // Frames of one sender stay in order, so both were seen, and only this one was decapsulated.
        let moved = wire.send(&whole, whole.len() as u16);
        assert_eq!(
            moved,
            BTreeMap::from([(Counter::TunnelToPod.name(), 1)]),
            "{ids:?}"
        );
    }
}

/// The kernel's IP stack takes such a frame as untagged.
#[test]
fn a_frame_with_a_priority_tag_gets_the_verdict_of_an_untagged_one() {
    let wire = Wire::new();
    wire.attach(|programs| programs.attach_uplink(NEAR).unwrap());
    let inner = Ip::udp(B_POD, 1, POD, 2, b"x");
    let cases = [
        (ipip(B, OWN, &inner.bytes()), Counter::TunnelToPod.name()),
        (fou(B, OWN, &inner.bytes()), Counter::TunnelToPod.name()),
        (
            ipip(STRANGER, OWN, &inner.bytes()),
            DropReason::UnknownPeer.name(),
        ),
        (inner.bytes(), DropReason::UnencapsulatedPodSource.name()),
        (
            Ip::udp(STRANGER, 1, POD, 2, b"x").bytes(),
            DropReason::UnencapsulatedToPod.name(),
        ),
    ];
    for (packet, expected) in cases {
        for whole in [frame(&packet), with_tags(&frame(&packet), &[0])] {
            let moved = wire.send(&whole, whole.len() as u16);
            assert_eq!(moved, BTreeMap::from([(expected, 1)]));
        }
    }
}

/// After the first tag the kernel removes further priority tags itself, without running the program again.
#[test]
fn a_frame_with_two_priority_tags_is_dropped() {
    let wire = Wire::new();
    wire.attach(|programs| programs.attach_uplink(NEAR).unwrap());
    let whole = frame(&Ip::udp(STRANGER, 1, POD, 2, b"x").bytes());
    for ids in [&[0, 0][..], &[0, 0, 0], &[0, 0, 100]] {
        let whole = with_tags(&whole, ids);
        let moved = wire.send(&whole, whole.len() as u16);
        let expected = BTreeMap::from([(DropReason::PriorityTags.name(), 1)]);
        assert_eq!(moved, expected, "{ids:?}");
    }
}

#[test]
fn a_tagged_frame_of_a_pod_is_dropped() {
    let mut wire = Wire::new();
    wire.attach_pod();
    let whole = tagged(&frame(&Ip::udp(POD, 1, B_POD, 2, b"x").bytes()));
    let moved = wire.send(&whole, whole.len() as u16);
    assert_eq!(moved, BTreeMap::from([(DropReason::PodNotIpv4.name(), 1)]));
}

#[test]
fn a_frame_of_a_pod_that_ends_in_its_ip_header_is_dropped() {
    let mut wire = Wire::new();
    wire.attach_pod();
    let whole = frame(&Ip::tcp(POD, 1, B_POD, 80).bytes());
    for len in 15..34 {
        let moved = wire.send(&whole[..len], 0);
        assert_eq!(
            moved,
            BTreeMap::from([(DropReason::Truncated.name(), 1)]),
            "{len} bytes"
        );
    }
}
