//! The FOU sockets that the agent keeps, as the kernel lists them.

use ipip_agent::host::fou::{FouSockets, remove};
use ipip_datapath::{KernelVersion, kernel_version};
use ipip_netlink::{Fou, Netlink};
use ipip_testkit::test_ns::TestNs;
use ipnetwork::Ipv4Network;
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
struct FouHost {
    netns: TestNs,
    state: TempDir,
}

impl FouHost {
    fn new() -> Self {
        let netns = TestNs::new();
        netns.loopback_up();
        Self {
            netns,
            state: TempDir::new().unwrap(),
        }
    }

    /// `None` if the kernel has no foo-over-UDP.
    fn fou(&self) -> Option<Fou> {
        let fou = Fou::open_in(&self.netns).unwrap();
        let module = Path::new("/sys/module/fou");
        assert!(
            fou.is_some() || !module.exists(),
            "the module fou is loaded and was not found"
        );
        fou
    }

    fn ensure(&self, fou: &mut FouSockets, wanted: &[SocketAddrV4]) {
        let wanted: BTreeSet<_> = wanted.iter().copied().collect();
        let ensure = || fou.ensure(wanted, self.state.path(), true);
        self.netns.run(ensure).unwrap();
    }

    fn has_empty_state(&self) -> bool {
        self.state.path().read_dir().unwrap().next().is_none()
    }
}

fn sockets(fou: &mut Fou) -> Vec<SocketAddrV4> {
    let mut sockets = fou.sockets().unwrap();
    sockets.sort();
    sockets
}

#[test]
fn sockets_are_opened_reopened_and_closed_and_foreign_ones_stay() {
    let host = FouHost::new();
    let Some(mut fou) = host.fou() else { return };
    fou.add(FOREIGN).unwrap();
    let mut ours = FouSockets::default();
    host.ensure(&mut ours, &[OURS]);
    if kernel_version() < KernelVersion::new(6, 9, 0) {
        assert_eq!(sockets(&mut fou), [FOREIGN]);
        assert!(host.has_empty_state());
        return;
    }
    assert_eq!(sockets(&mut fou), [OURS, FOREIGN]);

    // Another program closes the socket.
    fou.delete(OURS).unwrap();
    host.ensure(&mut ours, &[OURS]);
    assert_eq!(sockets(&mut fou), [OURS, FOREIGN]);

    // The next agent has another port, and wants a socket that another program has opened.
    host.ensure(&mut FouSockets::default(), &[MOVED, FOREIGN]);
    assert_eq!(sockets(&mut fou), [MOVED, FOREIGN]);

    let closed = || remove(host.state.path());
    host.netns.run(closed).unwrap().unwrap();
    assert_eq!(sockets(&mut fou), [FOREIGN]);
    assert!(host.has_empty_state());
}

#[test]
fn an_address_that_appears_later_gets_its_socket_and_keeps_no_other_from_having_one() {
    // Sorts before the address that is there.
    const LATER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 9, 9), 5555);
    let host = FouHost::new();
    let Some(mut fou) = host.fou() else { return };
    if kernel_version() < KernelVersion::new(6, 9, 0) {
        return;
    }
    let mut ours = FouSockets::default();
    let wanted = BTreeSet::from([OURS, LATER]);
    let ensure = |ours: &mut FouSockets| {
        let wanted = wanted.clone();
        // As after any reconciliation, not only after a full one.
        let ensure = || ours.ensure(wanted, host.state.path(), false);
        host.netns.run(ensure).unwrap();
    };
    ensure(&mut ours);
    assert_eq!(sockets(&mut fou), [OURS]);
    let mut netlink = Netlink::open_in(&host.netns).unwrap();
    let lo = netlink.link("lo").unwrap().unwrap().index;
    let address = Ipv4Network::from(*LATER.ip());
    netlink.add_address(lo, address).unwrap();
    ensure(&mut ours);
    assert_eq!(sockets(&mut fou), [LATER, OURS]);

    let closed = || remove(host.state.path());
    host.netns.run(closed).unwrap().unwrap();
    assert_eq!(sockets(&mut fou), []);
    assert!(host.has_empty_state());
}

#[test]
fn without_udp_peers_nothing_is_opened_and_without_fou_nothing_is_recorded() {
    let host = FouHost::new();
    host.ensure(&mut FouSockets::default(), &[]);
    assert!(host.has_empty_state());
    if let Some(mut fou) = host.fou() {
        assert_eq!(sockets(&mut fou), []);
        return;
    }
    host.ensure(&mut FouSockets::default(), &[OURS]);
    assert!(host.has_empty_state());
    host.netns
        .run(|| remove(host.state.path()))
        .unwrap()
        .unwrap();
}
