//! Connections that the kernel tracks, many of them.

use ipip_netlink::Conntrack;
use ipip_testkit::test_ns::TestNs;
use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
};

/// Number of connections.
const FLOWS: u16 = 40_000;
/// More than a reader needs that keeps no connection, and less than a table of this size takes.
const MAX_KIB: u64 = 4096;

#[test]
fn a_reader_keeps_no_connection_and_may_delete_each_while_it_reads() {
    let ns = TestNs::new();
    ns.loopback_up();
    ns.sh("nft 'table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }'");
    ns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for port in 1..=FLOWS {
            socket.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    })
    .unwrap();
    let mut table = Conntrack::open_in(&ns).unwrap();
    let mut deleting = Conntrack::open_in(&ns).unwrap();

    // The peak of the process's memory is counted from here.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_kib();
    let mut seen = 0;
    table.each(|_| seen += 1).unwrap();
    let used = peak_kib() - before;
    assert!(seen >= FLOWS, "{seen}");
    assert!(used < MAX_KIB, "{used} KiB for {seen} connections");

    table.each(|flow| deleting.delete(&flow).unwrap()).unwrap();
    let mut left = 0;
    table.each(|_| left += 1).unwrap();
    assert_eq!(left, 0);
}

/// The greatest amount of memory that this process had in use.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}
