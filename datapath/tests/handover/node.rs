//! A node with one pod and a peer, and the pins of two versions that it changes between.

use ipip_abi::{Addr, Encapsulation, Mac, Pod, RouteKey, handover::CURRENT};
use ipip_datapath::{AttachMode, Maps, Pins, Programs, load};
use ipip_netlink::{Link, LinkChange, NetNs, Netlink, Route, Veth};
use ipip_testkit::{
    node_maps::{NodeMaps, NodePeer, PeerPath},
    scratch::ScratchPins,
    test_ns::TestNs,
};
use ipnetwork::Ipv4Network;
use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::symlink,
    path::PathBuf,
};

/// The folder of the version that stands for the other one.
const OTHER: &str = "v1";

/// A node, by its number: 1 or 2.
pub struct Node {
    pub number: u8,
    pub pins: ScratchPins,
    pub host: TestNs,
    pub pod: TestNs,
}

/// Two nodes with a pod each and a wire between them, whose datapath is attached.
pub fn nodes(mode: AttachMode) -> [Node; 2] {
    let nodes = [1, 2].map(Node::new);
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
    nodes.iter().for_each(|node| node.start(mode));
    nodes
}

impl Node {
    fn new(number: u8) -> Self {
        let (pins, host, pod) = (ScratchPins::new(), TestNs::new(), TestNs::new());
        let veth = Veth {
            name: "veth",
            peer_name: "eth0",
            peer_ns: Some(&pod),
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
            .add_neighbour(eth0, pod_address(3 - number), host_mac)
            .unwrap();
        Self {
            number,
            pins,
            host,
            pod,
        }
    }

    fn start(&self, mode: AttachMode) {
        load(&self.pins, mode).unwrap();
        let address = Addr::from(pod_address(self.number));
        let fill = || {
            fill(self.number, &self.pins);
            let mut pods = Maps::open(&self.pins).unwrap().pods;
            pods.insert(address, self.entry(), 0).unwrap();
            let mut programs = Programs::open(&self.pins, mode)?;
            programs.attach_pod("veth")?;
            programs.attach_uplink("uplink")
        };
        self.host.run(fill).unwrap().unwrap();
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

    /// Gives the folder of the running version to the other version, as if that had made it.
    pub fn become_the_other_version(&self) {
        fs::rename(self.pins.version_dir(), self.folder(OTHER)).unwrap();
        self.set_current(OTHER);
    }

    /// Exchanges the folders of the two versions, if there are two.
    pub fn exchange_versions(&self) {
        let (own, other) = (self.pins.version_dir(), self.folder(OTHER));
        if !own.exists() || !other.exists() {
            return;
        }
        let aside = self.folder("v2");
        for (from, to) in [(&own, &aside), (&other, &own), (&aside, &other)] {
            fs::rename(from, to).unwrap();
        }
        let current = fs::read_link(self.folder(CURRENT)).unwrap();
        let own_name = own.file_name().unwrap().to_str().unwrap();
        self.set_current(if current.to_str() == Some(OTHER) {
            own_name
        } else {
            OTHER
        });
    }

    /// The folders of versions that exist, sorted.
    pub fn versions(&self) -> Vec<String> {
        let names = fs::read_dir(self.pins.root()).unwrap();
        let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut versions: Vec<String> = names.filter(|it| it.starts_with('v')).collect();
        versions.sort();
        versions
    }

    fn set_current(&self, version: &str) {
        let current = self.folder(CURRENT);
        fs::remove_file(&current).unwrap();
        symlink(version, current).unwrap();
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.pins.root().join(name)
    }

    /// A socket of its pod.
    pub fn socket(&self, port: u16) -> UdpSocket {
        let address = pod_address(self.number);
        let bind = || UdpSocket::bind((address, port));
        self.pod.run(bind).unwrap().unwrap()
    }
}

/// Writes every map of node `number` but `PODS`, as an agent does. Runs in the node's namespace.
pub fn fill(number: u8, pins: &Pins) {
    let remote = 3 - number;
    let uplink = Netlink::open().unwrap().link("uplink").unwrap().unwrap();
    let path = PeerPath {
        uplink_mac: Mac(uplink.mac),
        ..PeerPath::new(underlay(remote).into(), Encapsulation::Ipip, uplink.index)
    };
    NodeMaps::new("own", underlay(number).into(), pod_cidr(number))
        .peer(NodePeer::new(1, "remote", pod_cidr(remote)).path(path))
        .write(&mut Maps::open(pins).unwrap())
        .unwrap();
}

pub fn pod_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, number, 2)
}

fn pod_cidr(number: u8) -> RouteKey {
    RouteKey::new(Addr([10, 42, number, 0]), 24)
}

fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Network {
    Ipv4Network::new(address, prefix).unwrap()
}

fn link_of(netns: &NetNs, name: &str) -> Link {
    let mut netlink = Netlink::open_in(netns).unwrap();
    netlink.link(name).unwrap().expect("the test made it")
}

/// Brings an interface up.
fn up(netns: &NetNs, name: &str) -> Link {
    let found = link_of(netns, name);
    let change = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let mut netlink = Netlink::open_in(netns).unwrap();
    netlink.change_link(found.index, &change).unwrap();
    found
}
