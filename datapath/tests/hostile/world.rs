//! The node under test: written into the maps as an agent does, and known to the model.

use anyhow::Result;
use ipip_abi::{Addr, DEFAULT_UDP_PORT, Encapsulation, Mac, NodeAddr, Pod, Route, RouteKey};
use ipip_datapath::Maps;
use ipip_testkit::node_maps::{NodeMaps, NodePeer, PeerPath};

/// Where this node receives tunnel packets.
pub const OWN: Addr = Addr([10, 0, 0, 11]);
/// Another address of an uplink: only the outer destination of tunnel packets.
pub const ON_UPLINK: Addr = Addr([10, 0, 0, 99]);
/// The pod behind the interface on which the programs run.
pub const POD: Addr = Addr([10, 42, 1, 2]);
/// Another pod.
pub const POD_2: Addr = Addr([10, 42, 1, 3]);
/// A pod with limited bandwidth.
pub const LIMITED: Addr = Addr([10, 42, 1, 4]);
/// Addresses of no pod, in this node's and in a peer's range.
pub const NO_POD: Addr = Addr([10, 42, 1, 99]);
/// The probe address of this node, which has no secret with any peer, so that no probe is authentic (0047).
pub const PROBE: Addr = Addr([10, 42, 1, 0]);
/// Neither a node nor a pod.
pub const STRANGER: Addr = Addr([198, 51, 100, 66]);
/// A machine of the node's own network.
pub const NEIGHBOUR: Addr = Addr([10, 0, 0, 66]);

pub const HOST_MAC: Mac = Mac([2, 0xaa, 0, 0, 0, 1]);
pub const POD_MAC: Mac = Mac([2, 0xaa, 0, 0, 0, 2]);
pub const IPIP0_MAC: Mac = Mac([2, 0xcc, 0, 0, 0, 1]);
pub const UPLINK_MAC: Mac = Mac([2, 0xbb, 0, 0, 0, 1]);
pub const NEXT_HOP_MAC: Mac = Mac([2, 0xbb, 0, 0, 0, 2]);
/// Bytes of the largest inner packet.
pub const MTU: u16 = 1480;

/// A peer.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub name: &'static str,
    pub index: u16,
    /// First address of its /24 of pods.
    pub pods: Addr,
    pub internal_ip: Option<Addr>,
    /// Underlay address and encapsulation.
    pub path: Option<(Addr, Encapsulation)>,
    pub mac_known: bool,
}

impl Peer {
    pub fn pod(&self) -> Addr {
        let [a, b, c, _] = self.pods.0;
        Addr([a, b, c, 2])
    }

    pub fn underlay(&self) -> Option<Addr> {
        self.path.map(|path| path.0)
    }

    pub fn is_direct(&self) -> bool {
        self.path
            .is_some_and(|path| path.1 == Encapsulation::Direct)
    }
}

/// Peers of each kind: `b` by IP-in-IP and `c` by UDP in other realms, `d` without an outer header and `f` by IP-in-IP
/// in this node's realm, `e` without a path.
pub const PEERS: [Peer; 5] = [
    Peer {
        name: "b",
        index: 1,
        pods: Addr([10, 42, 2, 0]),
        internal_ip: Some(Addr([10, 0, 0, 21])),
        path: Some((Addr([203, 0, 113, 21]), Encapsulation::Ipip)),
        mac_known: true,
    },
    Peer {
        name: "c",
        index: 2,
        pods: Addr([10, 42, 3, 0]),
        internal_ip: Some(Addr([192, 168, 7, 31])),
        path: Some((Addr([203, 0, 113, 31]), Encapsulation::Udp)),
        mac_known: false,
    },
    Peer {
        name: "d",
        index: 3,
        pods: Addr([10, 42, 4, 0]),
        internal_ip: Some(Addr([10, 0, 0, 12])),
        path: Some((Addr([10, 0, 0, 12]), Encapsulation::Direct)),
        mac_known: true,
    },
    Peer {
        name: "e",
        index: 4,
        pods: Addr([10, 42, 5, 0]),
        internal_ip: None,
        path: None,
        mac_known: false,
    },
    Peer {
        name: "f",
        index: 5,
        pods: Addr([10, 42, 6, 0]),
        internal_ip: Some(Addr([10, 0, 0, 13])),
        path: Some((Addr([10, 0, 0, 13]), Encapsulation::Ipip)),
        mac_known: true,
    },
];

/// The longest prefix that holds an address: its peer (0 is this node), and whether it is a range of pods.
pub fn owner(address: Addr) -> Option<(u16, u8)> {
    let in_24 = |first: Addr| address.block() == first;
    if let Some(peer) = PEERS.iter().find(|it| it.internal_ip == Some(address)) {
        return Some((peer.index, Route::NODE));
    }
    if in_24(POD.block()) {
        return Some((0, Route::PODS));
    }
    let peer = PEERS.iter().find(|it| in_24(it.pods))?;
    Some((peer.index, Route::PODS))
}

pub fn peer(index: u16) -> &'static Peer {
    &PEERS[usize::from(index) - 1]
}

/// The peer with this underlay address.
pub fn by_underlay(address: Addr) -> Option<&'static Peer> {
    PEERS.iter().find(|it| it.underlay() == Some(address))
}

/// Whether the address is a node's: this one's or a peer's, by any of its names.
pub fn is_node(address: Addr) -> bool {
    let of = |it: &Peer| it.internal_ip == Some(address) || it.underlay() == Some(address);
    receives_tunnel(address) || PEERS.iter().any(of)
}

pub fn receives_tunnel(address: Addr) -> bool {
    [OWN, ON_UPLINK].contains(&address)
}

pub fn is_pod(address: Addr) -> bool {
    [POD, POD_2, LIMITED].contains(&address)
}

/// Indices of the node's interfaces.
#[derive(Clone, Copy, Debug)]
pub struct Interfaces {
    /// The host side of [`POD`]. Other pods are behind interfaces that do not exist.
    pub pod: u32,
    pub uplink: u32,
    pub ipip0: u32,
}

/// Gives [`POD`] its MAC back, which ARP may have changed.
pub fn restore_pod(maps: &mut Maps) -> Result<()> {
    let entry = maps.pods.get(&POD, 0)?;
    if entry.mac != POD_MAC {
        let mac = POD_MAC;
        maps.pods.insert(POD, Pod { mac, ..entry }, 0)?;
    }
    Ok(())
}

/// An index that no interface has.
const NOWHERE: u32 = 1_000_000;

/// Fills the maps.
pub fn write(maps: &mut Maps, interfaces: Interfaces) -> Result<()> {
    let range = |first| RouteKey::new(first, 24);
    let pod = |ifindex, flags| Pod {
        ifindex,
        mac: POD_MAC,
        host_mac: HOST_MAC,
        flags,
    };
    let mut node = NodeMaps::new("a", OWN, range(POD.block()))
        .configure(|config| {
            config.ipip0_ifindex = interfaces.ipip0;
            config.ipip0_mac = IPIP0_MAC;
            config.udp_port = DEFAULT_UDP_PORT.to_be_bytes();
            config.events_per_second = 0;
            config.probe_address = PROBE;
        })
        .pod(POD, pod(interfaces.pod, 0))
        .pod(POD_2, pod(NOWHERE, 0))
        .pod(LIMITED, pod(NOWHERE + 1, Pod::HOST_STACK));
    for peer in PEERS {
        let mut entry = NodePeer::new(peer.index, peer.name, range(peer.pods));
        if let Some((underlay, encapsulation)) = peer.path {
            entry = entry.path(PeerPath {
                uplink_mac: UPLINK_MAC,
                next_hop: peer.mac_known.then_some(NEXT_HOP_MAC),
                mtu: MTU,
                ..PeerPath::new(underlay, encapsulation, interfaces.uplink)
            });
        }
        if let Some(address) = peer.internal_ip {
            entry = entry.internal_ip(address);
        }
        node = node.peer(entry);
    }
    node.write(maps)?;
    let roles = NodeAddr::new(0, NodeAddr::OWN | NodeAddr::TUNNEL_ONLY);
    Ok(maps.node_addrs.insert(ON_UPLINK, roles, 0)?)
}

#[test]
fn the_model_knows_the_owner_of_each_address() {
    assert_eq!(owner(POD), Some((0, Route::PODS)));
    assert_eq!(owner(OWN), None);
}
