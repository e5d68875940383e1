//! Packets whose segments or checksums the kernel leaves to an interface.

use crate::{
    fixture::*,
    mss::{SYN, segment, usual},
    packets::{Ip, TCP, frame},
    wire::Wire,
};
use etherparse::{Ipv4Header, TcpHeader};
use ipip_abi::{Counter, Peer};
use ipip_netlink::{LinkChange, Netlink, Veth};
use ipip_testkit::frames::{FrameReceiver, Handling};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

const UPLINK: &str = "uplink";
const UPLINK_FAR: &str = "uplink-far";
const TIMEOUT: Duration = Duration::from_secs(5);
/// Offset of the IP header in a frame.
const IP: u16 = 14;

/// TCP options and IP options are in each segment.
#[test]
fn a_large_packet_fits_if_each_segment_fits_with_all_its_headers() {
    let mut wire = Wire::new();
    wire.attach_pod();
    for mtu in [PATH_MTU, 1260] {
        wire.node.raise_mtu(mtu);
        // Bytes of the IP and of the TCP header.
        for (ip, tcp) in [(20, 20), (20, 32), (20, 60), (24, 20), (24, 32)] {
            let mut segment = vec![0; 6000];
            segment[12] = (tcp / 4) << 4;
            let mut packet = Ip::new(POD, B_POD, TCP).payload(segment);
            if ip != 20 {
                packet = packet.options();
            }
            let frame = frame(&packet.bytes());
            let fits = mtu - ip - u16::from(tcp);
            for (size, counter) in [
                (fits, Counter::PodToTunnel),
                (fits + 1, Counter::OversizeToStack),
            ] {
                for linear in [IP + ip + 18, IP + ip + u16::from(tcp), 1000] {
                    let handling = Handling {
                        linear,
                        tcp_segments: Some((size, IP + ip)),
                        ..Handling::default()
                    };
                    let moved = wire.send_as(&frame, handling);
                    let expected = BTreeMap::from([(counter.name(), 1)]);
                    assert_eq!(
                        moved, expected,
                        "{mtu}, {ip} + {tcp}, {linear} bytes linear"
                    );
                }
            }
        }
    }
}

/// A second interface of the node, on which the paths to all peers leave.
fn uplink(wire: &mut Wire) -> FrameReceiver {
    let mut link = Netlink::open_in(&wire.near).unwrap();
    let veth = Veth {
        name: UPLINK,
        peer_name: UPLINK_FAR,
        ..Veth::default()
    };
    link.add_veth(&veth).unwrap();
    let [near, far] = [UPLINK, UPLINK_FAR].map(|name| {
        let index = link.link(name).unwrap().expect("the veth").index;
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        link.change_link(index, &up).unwrap();
        index
    });
    for index in [1, 2, 3] {
        let path = wire.node.maps.peers.get(&index, 0).unwrap();
        let path = Peer {
            ifindex: near,
            flags: Peer::MAC_KNOWN,
            ..path
        };
        wire.node.maps.peers.set(index, path, 0).unwrap();
    }
    wire.near.run(|| FrameReceiver::open(far)).unwrap().unwrap()
}

/// The frame that arrives next with this destination MAC.
fn next(receiver: &FrameReceiver, mac: [u8; 6]) -> Vec<u8> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match receiver.receive().unwrap() {
            Some(frame) if frame[..6] == mac => return frame,
            Some(_) => {}
            None => thread::sleep(Duration::from_millis(1)),
        }
        assert!(Instant::now() < deadline, "no frame arrived");
    }
}

/// The interface adds the rest of the segment, with the new MSS, to the sum of addresses and length that is there.
#[test]
fn a_checksum_that_is_still_to_be_filled_in_is_not_updated() {
    let mut wire = Wire::new();
    wire.attach_pod();
    let receiver = uplink(&mut wire);
    for (index, destination, head) in [(1, B_POD, 20), (2, C_POD, 28), (3, D_POD, 0)] {
        let mac = wire.node.maps.peers.get(&index, 0).unwrap().next_hop_mac.0;
        let syn = segment(POD, destination, SYN, &usual(1460)).bytes();
        for checksum_at in [None, Some(IP + 20)] {
            for linear in [34, 42, 48, 54, 58, 74] {
                let handling = Handling {
                    linear,
                    tcp_checksum: checksum_at,
                    ..Handling::default()
                };
                let moved = wire.send_as(&frame(&syn), handling);
                let counters = [Counter::PodToTunnel, Counter::MssClamped];
                let expected = counters.map(|counter| (counter.name(), 1));
                assert_eq!(moved, BTreeMap::from(expected));
                let frame = next(&receiver, mac);
                let (ip, rest) = Ipv4Header::from_slice(&frame[14 + head..]).unwrap();
                let (tcp, data) = TcpHeader::from_slice(rest).unwrap();
                assert_eq!(tcp.options.as_slice(), usual(PATH_MTU - 40));
                let sum = match checksum_at {
                    None => tcp.calc_checksum_ipv4(&ip, data).unwrap(),
                    Some(_) => u16::from_be_bytes([syn[36], syn[37]]),
                };
                assert_eq!(tcp.checksum, sum, "{linear} bytes linear");
            }
        }
    }
}
