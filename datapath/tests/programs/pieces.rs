//! Small frames whose bytes arrive in pieces, as from a driver that receives into several buffers.

use crate::{
    fixture::*,
    packets::{Ip, frame},
};
use ipip_abi::Counter;
use ipip_datapath::{AttachMode, Programs};
use ipip_netlink::{LinkChange, Netlink, set_sysctl};
use ipip_testkit::test_ns::TestNs;
use nix::libc;
use std::{
    fs::File,
    io::{IoSlice, Write},
    os::fd::AsRawFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

const TAP: &str = "tap0";
const DEVICE: &str = "/dev/net/tun";

/// A TAP interface that builds a packet of one fragment for each slice that is written (`IFF_NAPI_FRAGS`).
fn tap() -> File {
    let file = File::options().read(true).write(true).open(DEVICE);
    let file = file.expect("the device exists");
    // SAFETY: `ifreq` consists of integers and pointers, for which all-zero bytes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_NAPI | libc::IFF_NAPI_FRAGS;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which lives until the end of the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    file
}

/// A frame of 54 to 69 bytes is shorter than all headers that the program wants, but has an inner header.
#[test]
fn a_small_tunnel_packet_in_pieces_is_accepted() {
    // The kernels of the area `kernels` come without the module.
    if !Path::new(DEVICE).exists() {
        return;
    }
    let (node, host) = (Node::new(), TestNs::new());
    let mut device = host
        .run(|| {
            set_sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
            let device = tap();
            let mut link = Netlink::open().unwrap();
            let index = link.link(TAP).unwrap().expect("the tap").index;
            let up = LinkChange {
                up: Some(true),
                ..LinkChange::default()
            };
            link.change_link(index, &up).unwrap();
            let mut programs = Programs::open(node.pins(), AttachMode::Auto).unwrap();
            programs.attach_uplink(TAP).unwrap();
            device
        })
        .unwrap();
    for payload in 0..8 {
        for (wrap, head, peer, source) in
            [(ipip as Wrap, 20, B, B_POD), (fou as Wrap, 28, C, C_POD)]
        {
            let inner = Ip::new(source, POD, 253).payload(vec![7; payload]);
            let frame = frame(&wrap(peer, OWN, &inner.bytes()));
            // Ethernet, outer headers, inner packet.
            let (ethernet, rest) = frame.split_at(14);
            let (outer, inner) = rest.split_at(head);
            let before = node.counts();
            let pieces = [ethernet, outer, inner].map(IoSlice::new);
            let sent = device.write_vectored(&pieces).unwrap();
            assert_eq!(sent, frame.len());
            let deadline = Instant::now() + Duration::from_secs(5);
            let moved = loop {
                let moved = node.moved_since(&before);
                if !moved.is_empty() || Instant::now() > deadline {
                    break moved;
                }
                thread::sleep(Duration::from_millis(1));
            };
            let accepted = [(Counter::TunnelToPod.name(), 1)].into();
            assert_eq!(moved, accepted, "{payload} bytes behind {head}");
        }
    }
}
