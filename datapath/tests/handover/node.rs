//! What the nodes of the test do: fill their maps, and change between the pins of two versions.

use crate::two_nodes::{OnePodNode, other, pod_address, pod_cidr, two_nodes, underlay};
use ipip_abi::{Addr, Encapsulation, Mac, handover::CURRENT};
use ipip_datapath::{AttachMode, Maps, Pins, Programs, load};
use ipip_netlink::Netlink;
use ipip_testkit::node_maps::{NodeMaps, NodePeer, PeerPath};
use std::{fs, net::UdpSocket, os::unix::fs::symlink, path::PathBuf};

/// The folder of the version that stands for the other one.
const OTHER: &str = "v1";

/// Two nodes with a pod each and a wire between them, whose datapath is attached.
pub fn nodes(mode: AttachMode) -> [OnePodNode; 2] {
    let nodes = two_nodes();
    nodes.iter().for_each(|node| node.start(mode));
    nodes
}

impl OnePodNode {
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
    let remote = other(number);
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
