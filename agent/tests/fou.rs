//! The sockets that have the kernel merge packets in UDP, as the agent keeps them.

mod common;

use aya::util::KernelVersion;
use common::TestNs;
use ipip_agent::host::fou::{Merging, remove};
use ipip_netlink::{Fou, LinkChange, Netlink};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};
use tempfile::TempDir;

const OURS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5555);
const MOVED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5556);
const FOREIGN: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5557);

/// A host with the state folder of an agent.
struct Host {
    netns: TestNs,
    state: TempDir,
}

impl Host {
    fn new() -> Self {
        let netns = TestNs::new("merging");
        let mut netlink = Netlink::open_in(&netns).unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        netlink.change_link(lo, &up).unwrap();
        Self {
            netns,
            state: TempDir::new().unwrap(),
        }
    }

    /// None where the kernel has no foo-over-UDP.
    fn fou(&self) -> Option<Fou> {
        let fou = Fou::open_in(&self.netns).unwrap();
        let module = Path::new("/sys/module/fou");
        assert!(
            fou.is_some() || !module.exists(),
            "FOU is there and not found"
        );
        fou
    }

    fn ensure(&self, merging: &mut Merging, wanted: &[SocketAddrV4]) {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let ensure = || merging.ensure(wanted, self.state.path(), true);
        self.netns.run(ensure).unwrap();
    }

    fn keeps_nothing(&self) -> bool {
        self.state.path().read_dir().unwrap().next().is_none()
    }
}

fn sockets(fou: &mut Fou) -> Vec<SocketAddrV4> {
    let mut sockets = fou.sockets().unwrap();
    sockets.sort();
    sockets
}

#[test]
fn sockets_are_opened_and_mended_and_closed_and_those_of_others_stay() {
    let host = Host::new();
    let Some(mut fou) = host.fou() else { return };
    fou.add(FOREIGN).unwrap();
    let mut merging = Merging::default();
    host.ensure(&mut merging, &[OURS]);
    if KernelVersion::current().unwrap() < KernelVersion::new(6, 9, 0) {
        assert_eq!(sockets(&mut fou), [FOREIGN]);
        assert!(host.keeps_nothing());
        return;
    }
    assert_eq!(sockets(&mut fou), [OURS, FOREIGN]);

    // Someone closed it.
    fou.delete(OURS).unwrap();
    host.ensure(&mut merging, &[OURS]);
    assert_eq!(sockets(&mut fou), [OURS, FOREIGN]);

    // The next agent has another port, and somebody's socket is where it wants one.
    host.ensure(&mut Merging::default(), &[MOVED, FOREIGN]);
    assert_eq!(sockets(&mut fou), [MOVED, FOREIGN]);

    let closed = || remove(host.state.path());
    host.netns.run(closed).unwrap().unwrap();
    assert_eq!(sockets(&mut fou), [FOREIGN]);
    assert!(host.keeps_nothing());
}

#[test]
fn nothing_is_opened_where_no_peer_sends_in_udp_and_nothing_kept_where_the_kernel_cannot() {
    let host = Host::new();
    host.ensure(&mut Merging::default(), &[]);
    assert!(host.keeps_nothing());
    if let Some(mut fou) = host.fou() {
        assert_eq!(sockets(&mut fou), []);
        return;
    }
    host.ensure(&mut Merging::default(), &[OURS]);
    assert!(host.keeps_nothing());
    host.netns
        .run(|| remove(host.state.path()))
        .unwrap()
        .unwrap();
}
