//! Computes the desired content of the maps and the host's routes from the inventory and the host's facts. Pure.

use crate::{
    host::facts::{Facts, Ipip0},
    nodes::{
        inventory::{Field, Inventory, Node},
        path::{Underlay, encapsulation, underlay},
    },
    paths::uses::Uses,
    probe_key::Secrets,
    reconcile::{
        candidates,
        datapath_settings::DatapathSettings,
        host_route::{HostRoute, HostRouteKey},
        local_use, mtu, path_entry,
        peer_ids::Ids,
    },
};
use ipip_abi::{
    Addr, Config as MapConfig, NodeAddr, Peer, PeerInfo, PeerState, Route,
    probe::{ProbeSecret, candidate_index, candidate_indexes},
};
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

/// The desired content of the maps and of the host's routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The entry of `CONFIG`.
    pub config: MapConfig,
    /// `PEERS` without its zero entries.
    pub peers: BTreeMap<u16, Peer>,
    /// `PROBE_SECRETS` without its zero entries.
    pub probe_secrets: BTreeMap<u16, ProbeSecret>,
    /// `CANDIDATES` without its zero entries.
    pub candidates: BTreeMap<u32, Peer>,
    /// `PEER_INFO` without its empty entries.
    pub peer_info: BTreeMap<u16, PeerInfo>,
    /// `ROUTES`.
    pub routes: BTreeMap<Ipv4Network, Route>,
    /// `NODE_ADDRS`.
    pub node_addrs: BTreeMap<Addr, NodeAddr>,
    /// The agent's routes in the host's main table.
    pub host_routes: BTreeMap<HostRouteKey, HostRoute>,
}

impl Desired {
    /// The tunnel interface that `CONFIG` names.
    pub fn ipip0(&self) -> Ipip0 {
        Ipip0 {
            index: self.config.ipip0_ifindex,
            mac: self.config.ipip0_mac,
        }
    }
}

/// Everything that the desired state depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// This node.
    pub own: &'a Node,
    /// All nodes, [as this one sees them](crate::nodes::seen).
    pub inventory: &'a Inventory,
    /// The settings of this agent.
    pub settings: &'a DatapathSettings,
    /// The host as it was observed last.
    pub facts: &'a Facts,
    /// The tunnel interface.
    pub ipip0: Ipip0,
    /// The secrets of this node's probes.
    pub secrets: &'a Secrets,
    /// What probes have shown.
    pub uses: &'a Uses,
    /// The index of each peer. A peer without an index is left out until it has one.
    pub ids: &'a Ids,
}

/// Computes the desired state of the node `input.own`.
pub fn compute(input: &Input<'_>) -> Desired {
    let mut peers: Vec<(u16, &Node)> = input
        .inventory
        .nodes
        .iter()
        .filter(|node| node.name != input.own.name)
        .filter_map(|node| Some((*input.ids.get(&node.name)?, node)))
        .collect();
    peers.sort_by_key(|(id, _)| *id);

    let mut builder = Builder {
        input,
        owners: input.inventory.internal_ip_owners(&input.own.realm),
        desired: Desired {
            config: map_config(input),
            ..Desired::default()
        },
    };
    // The order decides which peer an address belongs to, because an existing entry is not replaced: one that has proven it
    // comes first, then the one to which a path leads there.
    builder.add_own();
    for &(id, peer) in &peers {
        builder.add_proven_addresses(id, peer);
    }
    for &(id, peer) in &peers {
        builder.add_candidates(id, peer);
        builder.add_peer(id, peer);
    }
    for &(id, peer) in &peers {
        builder.add_known_addresses(id, peer);
    }
    builder.desired
}

fn map_config(input: &Input<'_>) -> MapConfig {
    let Input {
        own,
        inventory,
        settings,
        facts,
        ipip0,
        ..
    } = input;
    MapConfig {
        ipip0_ifindex: ipip0.index,
        ipip0_mac: ipip0.mac,
        udp_port: settings.udp_port.to_be_bytes(),
        flags: if settings.foreign_ipip_passes {
            MapConfig::FOREIGN_IPIP_PASS
        } else {
            0
        },
        events_per_second: settings.events_per_second,
        pod_mtu: mtu::of_pods(settings, inventory, facts).into(),
        pod_gso_max: facts.large_gso().unwrap_or(0),
        probe_address: own.probe_address().map_or(Addr::ZERO, Addr::from),
    }
}

struct Builder<'a> {
    input: &'a Input<'a>,
    /// The node that each InternalIP leads to from here.
    owners: HashMap<Ipv4Addr, &'a str>,
    desired: Desired,
}

impl Builder<'_> {
    fn add_own(&mut self) {
        let Input { own, facts, .. } = self.input;
        let info = PeerInfo::new(&own.name, PeerState::OwnNode as u8, 0);
        self.desired.peer_info.insert(0, info);
        let addresses = own.internal_ips.iter().copied().chain(own.public_endpoint);
        for address in addresses {
            // If the address is on no interface (NATed or stale), packets to it must not be delivered locally:
            // the host would forward them. The entry still stops pods from sending tunnel packets to it.
            let flags = if facts.local.contains(&address) {
                NodeAddr::OWN
            } else {
                0
            };
            let entry = self.desired.node_addrs.entry(address.into());
            entry.or_insert(NodeAddr::new(0, flags));
        }
        // NAT may translate the address that other nodes know to any of these.
        for uplink in facts.uplinks.values() {
            for address in &uplink.addresses {
                let entry = self.desired.node_addrs.entry(address.ip().into());
                entry.or_insert(NodeAddr::new(0, NodeAddr::OWN | NodeAddr::TUNNEL_ONLY));
            }
        }
        for &network in &own.pod_cidrs {
            let route = Route::new(0, Route::PODS);
            self.desired.routes.insert(network, route);
            let key = HostRouteKey::last_resort(network);
            self.desired.host_routes.insert(key, HostRoute::Unreachable);
        }
    }

    fn add_peer(&mut self, id: u16, peer: &Node) {
        let (state, path) = match self.path(id, peer) {
            Ok(path) => (PeerState::Reachable, Some(path)),
            Err(state) => (state, None),
        };
        let mtu = path.map(|path| u32::from(path.mtu));
        let is_unproven = state == PeerState::NotProven;
        let notes = self.add_pod_cidrs(id, peer, mtu)
            | self.add_internal_ips(id, peer, mtu, is_unproven)
            | self.left_out(peer);
        if let Some(path) = path {
            let public = if path.is_public() {
                NodeAddr::PUBLIC
            } else {
                0
            };
            let underlay = NodeAddr::new(id, NodeAddr::UNDERLAY | public);
            let entry = self.desired.node_addrs.entry(path.underlay);
            entry.or_insert(underlay);
            self.desired.peers.insert(id, path);
        }
        let info = PeerInfo::new(&peer.name, state as u8, notes);
        self.desired.peer_info.insert(id, info);
    }

    /// Adds the routes to a peer's pods and returns the notes about them.
    fn add_pod_cidrs(&mut self, id: u16, peer: &Node, mtu: Option<u32>) -> u8 {
        let Input {
            inventory, facts, ..
        } = self.input;
        let mut notes = 0;
        for &network in &peer.pod_cidrs {
            // Such a route would cut this host off from its own network.
            if local_use::in_pod_cidr(network, inventory, facts).is_some() {
                notes |= PeerInfo::POD_CIDR_HOLDS_HOST;
                continue;
            }
            let route = Route::new(id, Route::PODS);
            self.desired.routes.insert(network, route);
            self.add_host_route(network, mtu);
        }
        notes
    }

    /// Adds the routes to a peer's InternalIPs and returns the notes about them. Nobody knows yet where an unproven peer is, so the
    /// host reaches it by itself.
    fn add_internal_ips(
        &mut self,
        id: u16,
        peer: &Node,
        mtu: Option<u32>,
        is_unproven: bool,
    ) -> u8 {
        let Input {
            own,
            inventory,
            facts,
            ..
        } = self.input;
        let other_realm = peer.realm != own.realm;
        let mut notes = 0;
        for &address in &peer.internal_ips {
            if self.owners.get(&address) != Some(&peer.name.as_str()) {
                notes |= PeerInfo::INTERNAL_IP_SHARED;
                continue;
            }
            if local_use::of_internal_ip(own, peer, address, inventory, facts).is_some() {
                notes |= PeerInfo::INTERNAL_IP_IS_LOCAL;
                continue;
            }
            if other_realm && facts.lan_hosts.contains_key(&address) {
                notes |= PeerInfo::LAN_CONFLICT;
            }
            let network = Ipv4Network::from(address);
            let route = Route::new(id, Route::NODE);
            self.desired.routes.insert(network, route);
            // A node with its public endpoint on an interface may report it as its InternalIP too. A host route
            // into the tunnel would then catch the tunnel's own outer packets.
            if other_realm && !is_unproven && peer.public_endpoint != Some(address) {
                self.add_host_route(network, mtu);
            }
        }
        notes
    }

    /// The notes about the values of a peer that nobody uses.
    fn left_out(&self, peer: &Node) -> u8 {
        let fields = self.input.inventory.fields_left_out(&peer.name);
        let notes = fields.map(|field| match field {
            Field::PublicEndpoint => PeerInfo::ENDPOINT_LEFT_OUT,
            Field::InternalIps => PeerInfo::INTERNAL_IP_LEFT_OUT,
            Field::PodCidrs => PeerInfo::POD_CIDR_LEFT_OUT,
            Field::Name | Field::Encapsulation | Field::ProbeKey => 0,
        });
        notes.fold(0, |all, note| all | note)
    }

    /// Adds the addresses of a peer at which it has answered probes.
    fn add_proven_addresses(&mut self, id: u16, peer: &Node) {
        let Some(shown) = self.input.uses.get(&peer.name) else {
            return;
        };
        let addresses = peer.internal_ips.iter().chain(&peer.public_endpoint);
        for &address in addresses.filter(|it| shown.proven.contains(it)) {
            let cost = match peer.internal_ips.contains(&address) {
                true => 0,
                false => NodeAddr::PUBLIC,
            };
            let entry = self.desired.node_addrs.entry(address.into());
            entry.or_insert(NodeAddr::new(id, NodeAddr::UNDERLAY | cost));
        }
    }

    fn add_known_addresses(&mut self, id: u16, peer: &Node) {
        // Inside a realm, a peer with several uplinks sends with the InternalIP of the one that its route names.
        let in_realm = peer.realm == self.input.own.realm;
        // If only probes have shown that the peer is near, only the addresses that answered are its own here.
        let may_send = in_realm && !peer.is_found_near && self.desired.peers.contains_key(&id);
        let flags = if may_send { NodeAddr::UNDERLAY } else { 0 };
        let internal_ips = peer.internal_ips.iter().map(|address| (*address, flags));
        for (address, flags) in
            internal_ips.chain(peer.public_endpoint.map(|it| (it, NodeAddr::PUBLIC)))
        {
            let entry = self.desired.node_addrs.entry(address.into());
            entry.or_insert(NodeAddr::new(id, flags));
        }
    }

    fn add_host_route(&mut self, network: Ipv4Network, mtu: Option<u32>) {
        let Input {
            own, facts, ipip0, ..
        } = self.input;
        let first = own.internal_ips.first().copied();
        let target = HostRoute::Interface {
            index: ipip0.index,
            // The kernel refuses a source that is not an address of the host.
            source: first.filter(|source| facts.local.contains(source)),
            mtu,
        };
        let key = HostRouteKey::best(network);
        self.desired.host_routes.insert(key, target);
    }

    /// What the peer's probes need: the secret, and the candidates.
    fn add_candidates(&mut self, id: u16, peer: &Node) {
        let Input {
            own,
            settings,
            facts,
            secrets,
            ..
        } = self.input;
        let secret = candidates::secret(peer, secrets);
        self.desired.probe_secrets.extend(secret.map(|it| (id, it)));
        let candidates = candidates::of_peer(own, peer, settings.encapsulation, facts);
        let candidates = candidates.map(|(number, path)| (candidate_index(id, number), path));
        self.desired.candidates.extend(candidates);
    }

    /// The entry of `PEERS`, or the reason why the peer is unreachable: the path that probes have proven, or until then the
    /// configured one.
    fn path(&self, id: u16, peer: &Node) -> Result<Peer, PeerState> {
        let shown = self.input.uses.get(&peer.name);
        let proven = shown.and_then(|shown| {
            let proven = shown.path?;
            let index = candidate_index(id, proven.number as u8);
            let path = self.desired.candidates.get(&index);
            let path = path.filter(|it| it.underlay == proven.address.into())?;
            let mtu = shown.mtu.map_or(path.mtu, |it| it.min(path.mtu));
            Some(Peer { mtu, ..*path })
        });
        proven.map_or_else(
            || {
                self.configured_path(peer)
                    .map_err(|why| self.until_proven(id, peer, why))
            },
            Ok,
        )
    }

    /// The state of a peer to which no path can be used before a probe has proven it. `why` is what keeps it from a configured
    /// one, which counts if realms were stated.
    fn until_proven(&self, id: u16, peer: &Node, why: PeerState) -> PeerState {
        let is_of_no_realm = self.input.own.realm.is_empty() || peer.realm.is_empty();
        let mut candidates = self.desired.candidates.range(candidate_indexes(id));
        let has_probes = self.desired.probe_secrets.contains_key(&id);
        match is_of_no_realm && has_probes && candidates.next().is_some() {
            true => PeerState::NotProven,
            false => why,
        }
    }

    fn configured_path(&self, peer: &Node) -> Result<Peer, PeerState> {
        let Input {
            own,
            settings,
            facts,
            ..
        } = self.input;
        let in_realm = own.realm == peer.realm;
        let address = underlay(own, peer)?;
        if !in_realm && own.public_endpoint.is_none() {
            return Err(PeerState::NoOwnPublicEndpoint);
        }
        let encapsulation = encapsulation(own, peer, settings.encapsulation);
        path_entry::compute(own, facts, Underlay { address, in_realm }, encapsulation)
    }
}

#[cfg(test)]
mod tests;
