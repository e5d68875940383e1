//! From inventory and facts to what the maps and the kernel's routes should hold. Pure.

use crate::{
    config::{Config, ForeignIpip},
    host::facts::{Facts, Ipip0},
    nodes::{
        inventory::{Inventory, Node},
        path,
    },
    reconcile::peer_ids::Ids,
};
use ipip_abi::{
    Addr, Config as MapConfig, Encapsulation, NodeAddr, PROTO_IPIP, Peer, PeerInfo, PeerState,
    Route,
};
use ipip_netlink::{Route as KernelRoute, RouteKind, Scope};
use ipnetwork::Ipv4Network;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Who made our routes, for `ip route show proto 105` and for [`plan`](crate::reconcile::plan): routes of
/// other protocols are never touched. Not in `/etc/iproute2/rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 105;
/// Metric of the route that answers for pod addresses of this node that no pod has: anything
/// else is better.
const LAST_RESORT: u32 = 0xf000_0000;
const OUTER_TTL: u8 = 64;
const PROTO_UDP: u8 = 17;

/// What the maps and the kernel's routes should hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The entry of `CONFIG`.
    pub config: MapConfig,
    /// `PEERS` without its zero entries.
    pub peers: BTreeMap<u16, Peer>,
    /// `PEER_INFO` without its empty entries.
    pub peer_info: BTreeMap<u16, PeerInfo>,
    /// `ROUTES`.
    pub routes: BTreeMap<Ipv4Network, Route>,
    /// `NODE_ADDRS`.
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    /// The kernel's routes of [`ROUTE_PROTOCOL`], by destination.
    pub kernel_routes: BTreeMap<Ipv4Network, KernelRoute>,
    /// Pod CIDRs of this node.
    pub own_pods: Vec<Ipv4Network>,
}

/// The configured MTU of pods is more than the uplinks and the encapsulations leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("mtu: {configured} does not fit: the smallest uplink takes {uplink} bytes and the largest encapsulation in use adds {overhead}; remedy: at most {}, or auto", uplink - overhead)]
pub struct MtuDoesNotFit {
    configured: u16,
    uplink: u16,
    overhead: u16,
}

/// Checks that a configured MTU fits.
pub fn check_mtu(
    config: &Config,
    inventory: &Inventory,
    facts: &Facts,
) -> Result<(), MtuDoesNotFit> {
    let (uplink, overhead) = (facts.least_mtu(), largest_overhead(config, inventory));
    match config.mtu {
        Some(configured) if configured > uplink.saturating_sub(overhead) => Err(MtuDoesNotFit {
            configured,
            uplink,
            overhead: overhead.min(uplink),
        }),
        _ => Ok(()),
    }
}

/// What the maps and routes of the node `own` should hold. `ids` has an index for every peer
/// that takes part; a peer without one waits for it.
pub fn desired(
    own: &Node,
    inventory: &Inventory,
    config: &Config,
    facts: &Facts,
    ipip0: Ipip0,
    ids: &Ids,
) -> Desired {
    let view = View {
        own,
        config,
        facts,
        shared: inventory.shared_internal_ips(),
        ipip0,
    };
    let mut peers: Vec<(u16, &Node)> = inventory
        .nodes
        .iter()
        .filter(|node| node.name != own.name)
        .filter_map(|node| Some((*ids.get(&node.name)?, node)))
        .collect();
    peers.sort_by_key(|(id, _)| *id);

    let mut desired = Desired {
        config: view.map_config(inventory),
        peers: BTreeMap::new(),
        peer_info: BTreeMap::new(),
        routes: BTreeMap::new(),
        node_addrs: BTreeMap::new(),
        kernel_routes: BTreeMap::new(),
        own_pods: own.pod_cidrs.clone(),
    };
    view.add_own(&mut desired);
    for &(id, peer) in &peers {
        view.add_peer(&mut desired, id, peer);
    }
    // What is only known, after all that is used, so that it never takes its place.
    for &(id, peer) in &peers {
        for address in peer
            .internal_ips
            .iter()
            .copied()
            .chain(peer.public_endpoint)
        {
            let known = NodeAddr::new(id, 0);
            desired.node_addrs.entry(address.into()).or_insert(known);
        }
    }
    desired
}

struct View<'a> {
    own: &'a Node,
    config: &'a Config,
    facts: &'a Facts,
    shared: BTreeSet<Ipv4Addr>,
    ipip0: Ipip0,
}

impl View<'_> {
    fn map_config(&self, inventory: &Inventory) -> MapConfig {
        let overhead = largest_overhead(self.config, inventory);
        let most = self.facts.least_mtu().saturating_sub(overhead);
        MapConfig {
            ipip0_ifindex: self.ipip0.index,
            ipip0_mac: self.ipip0.mac,
            udp_port: self.config.udp_port.to_be_bytes(),
            flags: match self.config.foreign_ipip {
                ForeignIpip::Drop => 0,
                ForeignIpip::Pass => MapConfig::FOREIGN_IPIP_PASS,
            },
            events_per_second: self.config.events_per_second,
            pod_mtu: self.config.mtu.map_or(most, |mtu| mtu.min(most)).into(),
            pod_gso_max: self.facts.large_gso().unwrap_or(0),
        }
    }

    fn add_own(&self, desired: &mut Desired) {
        let info = PeerInfo::new(&self.own.name, PeerState::OwnNode as u8, 0);
        desired.peer_info.insert(0, info);
        let own = self.own.internal_ips.iter().copied();
        for address in own.chain(self.own.public_endpoint) {
            // An address on no interface (behind NAT, or of yesterday) is not for this host to take
            // packets for: it would pass them on. The entry keeps pods from sending tunnel packets.
            let is_local = self.facts.local.contains(&address);
            let flags = if is_local { NodeAddr::OWN } else { 0 };
            let entry = desired.node_addrs.entry(address.into());
            entry.or_insert(NodeAddr::new(0, flags));
        }
        for &network in &self.own.pod_cidrs {
            desired.routes.insert(network, Route::new(0, Route::PODS));
            let unreachable = KernelRoute {
                oif: None,
                scope: Scope::Global,
                kind: RouteKind::Unreachable,
                metric: Some(LAST_RESORT),
                protocol: ROUTE_PROTOCOL,
                ..KernelRoute::on_link(network, 0)
            };
            desired.kernel_routes.insert(network, unreachable);
        }
    }

    fn add_peer(&self, desired: &mut Desired, id: u16, peer: &Node) {
        let (state, path) = match self.path(peer) {
            Ok(path) => (PeerState::Reachable, Some(path)),
            Err(state) => (state, None),
        };
        let other_realm = peer.realm != self.own.realm;
        let mut notes = 0;
        let mtu = path.map(|path| u32::from(path.mtu));
        for &network in &peer.pod_cidrs {
            // It would take this host's own network away.
            let mut of_host = self.facts.local.iter().chain(&self.facts.gateways);
            if of_host.any(|address| network.contains(*address)) {
                notes |= PeerInfo::POD_CIDR_HOLDS_HOST;
                continue;
            }
            desired.routes.insert(network, Route::new(id, Route::PODS));
            self.add_kernel_route(desired, network, mtu);
        }
        for &address in &peer.internal_ips {
            // In the own realm the address has one meaning.
            if other_realm && self.shared.contains(&address) {
                notes |= PeerInfo::INTERNAL_IP_SHARED;
                continue;
            }
            // A gateway of the own realm may well be a node; in another realm it is not that host.
            let is_gateway = other_realm && self.facts.gateways.contains(&address);
            if is_gateway || self.facts.local.contains(&address) {
                notes |= PeerInfo::INTERNAL_IP_IS_LOCAL;
                continue;
            }
            let network = Ipv4Network::from(address);
            desired.routes.insert(network, Route::new(id, Route::NODE));
            // A node that has its public endpoint on an interface may have it as its InternalIP too:
            // a route into the tunnel would lead the tunnel's own packets there.
            if other_realm && peer.public_endpoint != Some(address) {
                self.add_kernel_route(desired, network, mtu);
            }
        }
        if let Some(path) = path {
            let underlay = NodeAddr::new(id, NodeAddr::UNDERLAY);
            desired.node_addrs.entry(path.underlay).or_insert(underlay);
            desired.peers.insert(id, path);
        }
        let info = PeerInfo::new(&peer.name, state as u8, notes);
        desired.peer_info.insert(id, info);
    }

    fn add_kernel_route(&self, desired: &mut Desired, network: Ipv4Network, mtu: Option<u32>) {
        let source = self.own.internal_ips.first().copied();
        let route = KernelRoute {
            // The kernel refuses a source that is no address of the host.
            source: source.filter(|source| self.facts.local.contains(source)),
            mtu,
            protocol: ROUTE_PROTOCOL,
            ..KernelRoute::on_link(network, self.ipip0.index)
        };
        desired.kernel_routes.insert(network, route);
    }

    fn path(&self, peer: &Node) -> Result<Peer, PeerState> {
        let underlay = path::underlay(self.own, peer)?;
        if self.facts.local.contains(&underlay) {
            return Err(PeerState::OwnAddress);
        }
        let source = self.source(peer).ok_or(PeerState::NoInternalIp)?;
        let hop = self.facts.hops.get(&underlay);
        let hop = hop.ok_or(PeerState::NoUnderlayRoute)?;
        let uplink = self.facts.uplinks.get(&hop.uplink);
        let uplink = uplink.ok_or(PeerState::NoUnderlayRoute)?;
        let encapsulation = path::encapsulation(self.own, peer, self.config.encapsulation);
        let protocol = match encapsulation {
            Encapsulation::Udp => PROTO_UDP,
            _ => PROTO_IPIP,
        };
        let (underlay, source) = (Addr::from(underlay), Addr::from(source));
        let macs = hop.mac.zip(uplink.mac);
        let (next_hop_mac, uplink_mac) = macs.unwrap_or_default();
        Ok(Peer {
            underlay,
            source,
            ifindex: hop.uplink,
            mtu: uplink.mtu.saturating_sub(encapsulation.overhead()),
            encapsulation: encapsulation as u8,
            flags: if macs.is_some() { Peer::MAC_KNOWN } else { 0 },
            next_hop_mac,
            uplink_mac,
            header_sum: Peer::partial_sum(source, underlay, OUTER_TTL, protocol),
        })
    }

    /// The address as which `peer` knows this node on the underlay, before any NAT.
    fn source(&self, peer: &Node) -> Option<Ipv4Addr> {
        let endpoint = self.own.public_endpoint;
        let endpoint = endpoint.filter(|endpoint| self.facts.local.contains(endpoint));
        let internal = self.own.internal_ips.first().copied();
        if peer.realm == self.own.realm {
            internal.or(endpoint)
        } else {
            endpoint.or(internal)
        }
    }
}

/// The most that any path of the cluster may add: a pod's packets can take any of them.
fn largest_overhead(config: &Config, inventory: &Inventory) -> u16 {
    let overrides = inventory.nodes.iter().filter_map(|node| node.encapsulation);
    overrides
        .chain([config.encapsulation, Encapsulation::Ipip])
        .map(Encapsulation::overhead)
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
