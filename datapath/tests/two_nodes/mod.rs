//! Two nodes with a pod each, in network namespaces, with a wire between their uplinks.

use ipip_abi::{Addr, Mac, Pod, RouteKey};
use ipip_netlink::{Link, LinkChange, NetNs, Netlink, Route, Veth};
use ipip_testkit::{scratch::ScratchPins, test_ns::TestNs};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// MTU of the pods' interfaces: an uplink's MTU minus the larger outer headers.
pub const POD_MTU: u32 = 1472;

/// A node with one pod, by its number: 1 or 2.
pub struct OnePodNode {
    pub number: u8,
    pub pins: ScratchPins,
    pub host: TestNs,
    pub pod: TestNs,
}

/// The nodes. Nothing is loaded.
pub fn two_nodes() -> [OnePodNode; 2] {
    let nodes = [1, 2].map(OnePodNode::new);
    let wire = Veth {
        name: "uplink",
        peer_name: "uplink",
        peer_ns: Some(&nodes[1].host),
        ..Veth::default()
    };
    let mut netlink = Netlink::open_in(&nodes[0].host).unwrap();
    netlink.add_veth(&wire).unwrap();
    for node in &nodes {
        let uplink = up(&node.host, "uplink");
        let mut netlink = Netlink::open_in(&node.host).unwrap();
        let address = network(underlay(node.number), 24);
        netlink.add_address(uplink.index, address).unwrap();
    }
    nodes
}

impl OnePodNode {
    fn new(number: u8) -> Self {
        let (pins, host, pod) = (ScratchPins::new(), TestNs::new(), TestNs::new());
        let veth = Veth {
            name: "veth",
            peer_name: "eth0",
            peer_ns: Some(&pod),
            mtu: Some(POD_MTU),
            ..Veth::default()
        };
        let mut netlink = Netlink::open_in(&host).unwrap();
        netlink.add_veth(&veth).unwrap();
        let host_mac = up(&host, "veth").mac;
        let eth0 = up(&pod, "eth0").index;
        let mut netlink = Netlink::open_in(&pod).unwrap();
        let own = network(pod_address(number), 32);
        netlink.add_address(eth0, own).unwrap();
        let all_pods = network(Ipv4Addr::new(10, 42, 0, 0), 16);
        netlink
            .replace_route(&Route::on_link(all_pods, eth0))
            .unwrap();
        netlink
            .add_neighbour(eth0, pod_address(other(number)), host_mac)
            .unwrap();
        Self {
            number,
            pins,
            host,
            pod,
        }
    }

    /// The entry of its pod.
    pub fn entry(&self) -> Pod {
        let veth = link_of(&self.host, "veth");
        Pod {
            ifindex: veth.index,
            mac: Mac(link_of(&self.pod, "eth0").mac),
            host_mac: Mac(veth.mac),
            flags: 0,
        }
    }
}

/// The number of the other node.
pub fn other(number: u8) -> u8 {
    3 - number
}

pub fn pod_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, number, 2)
}

pub fn pod_cidr(number: u8) -> RouteKey {
    RouteKey::new(Addr([10, 42, number, 0]), 24)
}

pub fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Network {
    Ipv4Network::new(address, prefix).unwrap()
}

pub fn link_of(netns: &NetNs, name: &str) -> Link {
    let mut netlink = Netlink::open_in(netns).unwrap();
    netlink.link(name).unwrap().expect("the test made it")
}

/// Brings an interface up.
fn up(netns: &NetNs, name: &str) -> Link {
    let change = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    change_link(netns, name, &change)
}

/// Changes an interface. Returns what it was before.
pub fn change_link(netns: &NetNs, name: &str, change: &LinkChange) -> Link {
    let found = link_of(netns, name);
    let mut netlink = Netlink::open_in(netns).unwrap();
    netlink.change_link(found.index, change).unwrap();
    found
}
