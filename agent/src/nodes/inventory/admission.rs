//! Decides what each node gets when the claims of nodes contradict each other: the older claim wins.
//!
//! Only the contested value is left out: a node with another node's public endpoint is not reached from other realms,
//! but its own realm and everything else works. Pure: every agent of a cluster computes the same answer.

use super::{
    Fault, Field, InvalidField, Inventory, Node,
    claim::{ParsedNode, Value},
};
use ipip_abi::maps;
use ipnetwork::Ipv4Network;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

/// A value that a node has had for longer than its other values, or before it publishes it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Reservation<'a> {
    /// The value.
    pub value: Value<'a>,
    /// The name of the node.
    pub node: &'a str,
}

/// What a node claims: with an age of its own.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// All fields of a node.
    Node(&'a ParsedNode),
    /// One value alone. It keeps the value for the node.
    Reservation(Reservation<'a>),
}

impl<'a> From<&'a ParsedNode> for Entry<'a> {
    fn from(node: &'a ParsedNode) -> Self {
        Self::Node(node)
    }
}

/// Admits of each node the values that contradict neither the node itself nor what was admitted before. `entries` are
/// sorted by age, the oldest first, so a younger node never displaces an older one. Of two nodes with one name the
/// younger is left out as a whole. A reservation that contradicts an older entry of another node has no effect.
pub fn admit<'a>(entries: impl IntoIterator<Item: Into<Entry<'a>>>) -> Inventory {
    let mut admitted = Admitted::default();
    let mut inventory = Inventory::default();
    for entry in entries {
        let claim = match entry.into() {
            Entry::Node(claim) => claim,
            Entry::Reservation(reservation) => {
                admitted.reserve(reservation);
                continue;
            }
        };
        let mut left_out = claim.invalid.clone();
        match admitted.add(claim, &mut left_out) {
            Ok(node) => inventory.nodes.push(node),
            Err(fault) => left_out.push(InvalidField {
                line: claim.name_line,
                field: Field::Name,
                value: claim.node.name.clone(),
                fault,
            }),
        }
        if !left_out.is_empty() {
            let name = claim.node.name.clone();
            inventory.left_out.entry(name).or_default().extend(left_out);
        }
    }
    inventory.shared_internal_ips = admitted.shared(&inventory.nodes);
    inventory
}

/// A node, and the line of its value.
type Owner<'a> = (&'a str, Option<u64>);

/// The claims that are admitted so far. One more is checked against them in logarithmic time, because there may be
/// thousands of nodes.
#[derive(Default)]
struct Admitted<'a> {
    nodes: HashMap<&'a str, Option<u64>>,
    /// The node that has the InternalIP in the realm.
    in_realm: HashMap<(Ipv4Addr, &'a str), Owner<'a>>,
    /// The first node that has the InternalIP.
    internal_ips: HashMap<Ipv4Addr, Owner<'a>>,
    /// The node that has the public endpoint.
    endpoints: HashMap<Ipv4Addr, Owner<'a>>,
    /// The first node that has the address, as InternalIP or public endpoint.
    addresses: BTreeMap<Ipv4Addr, Owner<'a>>,
    /// Pod CIDRs by their first address. They are disjoint, so the order by last address is the same.
    networks: BTreeMap<Ipv4Addr, (Ipv4Network, Owner<'a>)>,
    /// What is reserved for a node that has not been added yet.
    reserved: HashSet<Reservation<'a>>,
}

impl<'a> Admitted<'a> {
    /// Keeps a value for a node, if it contradicts nothing that was admitted before.
    fn reserve(&mut self, reservation: Reservation<'a>) {
        let owner = (reservation.node, None);
        let added = match reservation.value {
            Value::InternalIp(ip, realm) => self.add_internal_ip(ip, realm, owner),
            Value::PublicEndpoint(ip) => self.add_endpoint(ip, owner),
            Value::PodCidr(network) => self.add_network(network, owner),
        };
        if added.is_ok() {
            self.reserved.insert(reservation);
        }
    }

    /// Whether `value` was reserved for the node; only the first time.
    fn take(&mut self, value: Value<'a>, (node, _): Owner<'a>) -> bool {
        !self.reserved.is_empty() && self.reserved.remove(&Reservation { value, node })
    }

    /// The InternalIPs that several of `nodes` have, with the one that was the first.
    fn shared(&self, nodes: &[Node]) -> BTreeMap<Ipv4Addr, String> {
        let all = nodes.iter().flat_map(|node| &node.internal_ips);
        let mut seen = HashSet::new();
        let shared = all.filter(|ip| !seen.insert(**ip));
        shared
            .filter_map(|ip| Some((*ip, self.internal_ips.get(ip)?.0.to_owned())))
            .collect()
    }

    /// Adds what can be admitted of a node, returns it, and appends the rest to `left_out`.
    ///
    /// # Errors
    /// The fault because of which the node is left out as a whole.
    fn add(
        &mut self,
        claim: &'a ParsedNode,
        left_out: &mut Vec<InvalidField>,
    ) -> Result<Node, Fault> {
        let name = claim.node.name.as_str();
        if claim.invalid.iter().any(|it| it.field == Field::Name) {
            return Err(Fault::NotAName);
        }
        if let Some(line) = self.nodes.get(name) {
            return Err(Fault::NameTaken(*line));
        }
        if self.nodes.len() >= maps::MAX_PEERS as usize {
            return Err(Fault::NoRoom(maps::MAX_PEERS, "nodes"));
        }
        self.nodes.insert(name, claim.name_line);
        let mut leave_out = |line, field, value: &dyn ToString, fault| {
            left_out.push(InvalidField {
                line,
                field,
                value: value.to_string(),
                fault,
            });
        };
        let mut node = Node {
            internal_ips: Vec::new(),
            pod_cidrs: Vec::new(),
            public_endpoint: None,
            ..claim.node.clone()
        };
        let ips = claim.internal_ips();
        let added = ips.map(|(ip, line)| {
            let added = self.add_internal_ip(ip, &claim.node.realm, (name, line));
            (ip, line, added)
        });
        let mut added: Vec<_> = added.collect();
        let endpoint = claim.endpoint();
        let endpoint = endpoint.map(|(ip, line)| (ip, line, self.add_endpoint(ip, (name, line))));
        if !added.iter().any(|it| it.2.is_ok()) && matches!(endpoint, Some((_, _, Ok(())))) {
            let may_share = |it: &Result<(), Fault>| match it {
                Err(Fault::InternalIpTaken(other, _)) => self.may_share(&claim.node, other),
                _ => false,
            };
            if let Some((_, _, shared)) = added.iter_mut().find(|it| may_share(&it.2)) {
                *shared = Ok(());
            }
        }
        for (ip, line, added) in added {
            match added {
                Ok(()) => node.internal_ips.push(ip),
                Err(fault) => leave_out(line, Field::InternalIps, &ip, fault),
            }
        }
        match endpoint {
            Some((ip, _, Ok(()))) => node.public_endpoint = Some(ip),
            Some((ip, line, Err(fault))) => leave_out(line, Field::PublicEndpoint, &ip, fault),
            None => {}
        }
        for (network, line) in claim.pod_cidrs() {
            match self.add_network(network, (name, line)) {
                Ok(()) => node.pod_cidrs.push(network),
                Err(fault) => leave_out(line, Field::PodCidrs, &network, fault),
            }
        }
        Ok(node)
    }

    /// Whether the node may have an InternalIP of an older one, if it has no other. Nobody has stated a realm, and both have public
    /// endpoints of their own, so they are in different networks, and none is the former name of the other: probes show which of
    /// them is at this address.
    fn may_share(&self, node: &Node, older: &str) -> bool {
        let mut endpoints = self.endpoints.values();
        node.realm.is_empty()
            && node.probe_key.is_some()
            && endpoints.any(|(owner, _)| *owner == older)
    }

    fn add_internal_ip(
        &mut self,
        ip: Ipv4Addr,
        realm: &'a str,
        owner: Owner<'a>,
    ) -> Result<(), Fault> {
        if self.take(Value::InternalIp(ip, realm), owner) {
            return Ok(());
        }
        if let Some((other, line)) = self.in_realm.get(&(ip, realm)) {
            return Err(Fault::InternalIpTaken((*other).into(), *line));
        }
        // A node may have its public endpoint on an interface.
        if let Some((other, line)) = self.endpoints.get(&ip)
            && *other != owner.0
        {
            return Err(Fault::EndpointTaken((*other).into(), *line));
        }
        self.outside_of_networks(ip)?;
        self.room_for_route()?;
        self.room_for_address()?;
        self.in_realm.insert((ip, realm), owner);
        self.internal_ips.entry(ip).or_insert(owner);
        self.addresses.entry(ip).or_insert(owner);
        Ok(())
    }

    fn add_endpoint(&mut self, ip: Ipv4Addr, owner: Owner<'a>) -> Result<(), Fault> {
        if self.take(Value::PublicEndpoint(ip), owner) {
            return Ok(());
        }
        if let Some((other, line)) = self.endpoints.get(&ip) {
            return Err(Fault::EndpointTaken((*other).into(), *line));
        }
        if let Some((other, line)) = self.internal_ips.get(&ip)
            && *other != owner.0
        {
            return Err(Fault::EndpointIsInternalIp((*other).into(), *line));
        }
        self.outside_of_networks(ip)?;
        self.room_for_address()?;
        self.endpoints.insert(ip, owner);
        self.addresses.entry(ip).or_insert(owner);
        Ok(())
    }

    fn add_network(&mut self, network: Ipv4Network, owner: Owner<'a>) -> Result<(), Fault> {
        if self.take(Value::PodCidr(network), owner) {
            return Ok(());
        }
        let range = network.network()..=network.broadcast();
        // A network that begins before `network` and reaches into it, or one that begins inside.
        let before = self.networks.range(..=network.network()).next_back();
        let before = before.filter(|(_, (other, _))| other.contains(network.network()));
        let overlapping = before.or_else(|| self.networks.range(range.clone()).next());
        if let Some((_, (other, (node, line)))) = overlapping {
            return Err(Fault::Overlaps(*other, (*node).into(), *line));
        }
        if let Some((address, (node, line))) = self.addresses.range(range).next() {
            return Err(Fault::HoldsNode(*address, (*node).into(), *line));
        }
        self.room_for_route()?;
        self.networks.insert(network.network(), (network, owner));
        Ok(())
    }

    fn outside_of_networks(&self, ip: Ipv4Addr) -> Result<(), Fault> {
        match self.networks.range(..=ip).next_back() {
            Some((_, (network, (node, _)))) if network.contains(ip) => {
                Err(Fault::HeldBy(*network, (*node).into()))
            }
            _ => Ok(()),
        }
    }

    fn room_for_route(&self) -> Result<(), Fault> {
        let used = self.in_realm.len() + self.networks.len();
        room(used, maps::MAX_ROUTES, "pod CIDRs and InternalIPs")
    }

    fn room_for_address(&self) -> Result<(), Fault> {
        let used = self.in_realm.len() + self.endpoints.len();
        room(
            used,
            maps::MAX_NODE_ADDRS,
            "InternalIPs and public endpoints",
        )
    }
}

fn room(used: usize, most: u32, what: &'static str) -> Result<(), Fault> {
    if used >= most as usize {
        return Err(Fault::NoRoom(most, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
