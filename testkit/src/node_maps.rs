//! The maps of a node, filled as an agent and the CNI plugin fill them, while neither runs.

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use ipip_abi::{
    Addr, Config, DEFAULT_UDP_PORT, Encapsulation, Mac, NodeAddr, Peer, PeerInfo, PeerState, Pod,
    Route, RouteKey,
};
use ipip_datapath::Maps;
use std::collections::BTreeMap;

/// The MTU of a path, and of pods, unless a test sets another: 1500 less the header of IPIP.
pub const MTU: u16 = 1480;

/// The entries of a node's maps. Build them, then [write](NodeMaps::write) them.
///
/// ```no_run
/// # use ipip_abi::{Addr, Encapsulation, Pod, RouteKey};
/// # use ipip_testkit::node_maps::{NodeMaps, NodePeer, PeerPath};
/// # fn fill(maps: &mut ipip_datapath::Maps) -> anyhow::Result<()> {
/// let remote = Addr([203, 0, 113, 21]);
/// let path = PeerPath::new(remote, Encapsulation::Ipip, 2);
/// NodeMaps::new("a1", Addr([10, 0, 0, 11]), RouteKey::new(Addr([10, 42, 1, 0]), 24))
///     .pod(Addr([10, 42, 1, 2]), Pod { ifindex: 9, ..Pod::default() })
///     .peer(NodePeer::new(1, "b1", RouteKey::new(Addr([10, 42, 2, 0]), 24)).path(path))
///     .write(maps)
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct NodeMaps {
    name: String,
    own: Addr,
    pod_cidr: RouteKey,
    config: Config,
    pods: Vec<(Addr, Pod)>,
    peers: Vec<NodePeer>,
}

/// A peer of the node.
#[derive(Clone, Debug)]
pub struct NodePeer {
    index: u16,
    name: String,
    pod_cidr: RouteKey,
    internal_ips: Vec<Addr>,
    path: Result<PeerPath, PeerState>,
}

/// How packets travel to a peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerPath {
    /// Outer destination.
    pub underlay: Addr,
    /// How packets are encapsulated.
    pub encapsulation: Encapsulation,
    /// Interface index of the uplink.
    pub ifindex: u32,
    /// MAC of the uplink.
    pub uplink_mac: Mac,
    /// MAC of the next hop. Without it, the programs look the next hop up in the kernel.
    pub next_hop: Option<Mac>,
    /// Bytes of the largest inner packet.
    pub mtu: u16,
}

impl NodeMaps {
    /// A node without pods and peers. It receives tunnel packets at `own`.
    pub fn new(name: &str, own: Addr, pod_cidr: RouteKey) -> Self {
        Self {
            name: name.into(),
            own,
            pod_cidr,
            config: Config {
                udp_port: DEFAULT_UDP_PORT.to_be_bytes(),
                pod_mtu: MTU.into(),
                ..Config::default()
            },
            pods: Vec::new(),
            peers: Vec::new(),
        }
    }

    /// Changes the settings. A new node has the default UDP port, [`MTU`] for pods, and zero in all other fields.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Adds a pod.
    pub fn pod(mut self, address: Addr, pod: Pod) -> Self {
        self.pods.push((address, pod));
        self
    }

    /// Adds a peer.
    pub fn peer(mut self, peer: NodePeer) -> Self {
        self.peers.push(peer);
        self
    }

    /// Writes all entries.
    ///
    /// # Errors
    /// The kernel refuses an entry, for example because a map is full.
    pub fn write(&self, maps: &mut Maps) -> Result<()> {
        maps.config.set(0, self.config, 0)?;
        // No agent extends the time.
        maps.next_hops_until.set(0, u32::MAX, 0)?;
        let info = PeerInfo::new(&self.name, PeerState::OwnNode as u8, 0);
        maps.peer_info.set(0, info, 0)?;
        add_own_address(maps, self.own)?;
        add_route(maps, self.pod_cidr, Route::new(0, Route::PODS))?;
        for (address, pod) in &self.pods {
            maps.pods.insert(address, pod, 0)?;
        }
        for peer in &self.peers {
            peer.write(self.own, maps)?;
        }
        Ok(())
    }
}

impl NodePeer {
    /// A peer that cannot be reached, because it has no public endpoint, until it gets a
    /// [path](Self::path). `index` is its index in `PEERS`, from 1.
    pub fn new(index: u16, name: &str, pod_cidr: RouteKey) -> Self {
        Self {
            index,
            name: name.into(),
            pod_cidr,
            internal_ips: Vec::new(),
            path: Err(PeerState::NoPublicEndpoint),
        }
    }

    /// Makes the peer reachable.
    pub fn path(mut self, path: PeerPath) -> Self {
        self.path = Ok(path);
        self
    }

    /// Adds an InternalIP, to which packets travel like those to the peer's pods.
    pub fn internal_ip(mut self, address: Addr) -> Self {
        self.internal_ips.push(address);
        self
    }

    /// Writes the peer's entries. `own` is the outer source of packets to it.
    ///
    /// # Errors
    /// The kernel refuses an entry, for example because a map is full.
    pub fn write(&self, own: Addr, maps: &mut Maps) -> Result<()> {
        let state = self.path.err().unwrap_or(PeerState::Reachable);
        let info = PeerInfo::new(&self.name, state as u8, 0);
        maps.peer_info.set(self.index.into(), info, 0)?;
        if let Ok(path) = self.path {
            maps.peers.set(self.index.into(), path.entry(own), 0)?;
            let roles = NodeAddr::new(self.index, NodeAddr::UNDERLAY);
            maps.node_addrs.insert(path.underlay, roles, 0)?;
        }
        add_route(maps, self.pod_cidr, Route::new(self.index, Route::PODS))?;
        for &address in &self.internal_ips {
            let host = RouteKey::new(address, 32);
            add_route(maps, host, Route::new(self.index, Route::NODE))?;
            // In one realm, the first InternalIP is also the underlay address.
            if self.path.is_ok_and(|path| path.underlay == address) {
                continue;
            }
            let known = NodeAddr::new(self.index, 0);
            maps.node_addrs.insert(address, known, 0)?;
        }
        Ok(())
    }
}

impl PeerPath {
    /// A path through the uplink `ifindex` with the MTU [`MTU`], whose next hop is not known.
    pub fn new(underlay: Addr, encapsulation: Encapsulation, ifindex: u32) -> Self {
        Self {
            underlay,
            encapsulation,
            ifindex,
            uplink_mac: Mac::default(),
            next_hop: None,
            mtu: MTU,
        }
    }

    /// The entry in `PEERS`.
    pub fn entry(&self, own: Addr) -> Peer {
        Peer {
            underlay: self.underlay,
            source: own,
            ifindex: self.ifindex,
            mtu: self.mtu,
            encapsulation: self.encapsulation as u8,
            flags: if self.next_hop.is_some() {
                Peer::MAC_KNOWN
            } else {
                0
            },
            next_hop_mac: self.next_hop.unwrap_or_default(),
            uplink_mac: self.uplink_mac,
            header_sum: Peer::partial_sum(own, self.underlay, self.encapsulation),
        }
    }
}

/// The index of every peer in the maps of a node, by its name.
///
/// # Errors
/// The kernel refuses to read an entry.
pub fn peers(maps: &Maps) -> Result<BTreeMap<String, u16>> {
    let mut peers = BTreeMap::new();
    for index in 1..maps.peer_info.len() {
        let info = maps.peer_info.get(&index, 0)?;
        if info.name_len > 0 {
            peers.insert(info.name().to_owned(), index as u16);
        }
    }
    Ok(peers)
}

/// Makes `address` one of the node itself, at which it receives tunnel packets.
///
/// # Errors
/// The kernel refuses the entry, for example because the map is full.
pub fn add_own_address(maps: &mut Maps, address: Addr) -> Result<()> {
    let own = NodeAddr::new(0, NodeAddr::OWN);
    Ok(maps.node_addrs.insert(address, own, 0)?)
}

/// Adds or replaces a route.
///
/// # Errors
/// The kernel refuses the entry, for example because the map is full.
pub fn add_route(maps: &mut Maps, prefix: RouteKey, route: Route) -> Result<()> {
    let key = Key::new(prefix.prefix_len, prefix.prefix);
    Ok(maps.routes.insert(&key, route, 0)?)
}
