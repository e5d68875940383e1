//! From the desired and the actual state to the steps between them. Pure.

use crate::reconcile::desired::{Desired, ROUTE_PROTOCOL};
use ipip_abi::{Addr, Config as MapConfig, NodeAddr, Peer, PeerInfo, Route};
use ipip_netlink::Route as KernelRoute;
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;

/// What the maps and the kernel's main table hold now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
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
    /// The kernel's routes, of every protocol.
    pub kernel_routes: Vec<KernelRoute>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Writes `CONFIG`.
    SetConfig(MapConfig),
    /// Writes an entry of `PEERS`; zero clears it.
    SetPeer(u16, Peer),
    /// Writes an entry of `PEER_INFO`; an empty one clears it.
    SetPeerInfo(u16, Box<PeerInfo>),
    /// Writes an entry of `NODE_ADDRS`.
    SetNodeAddr(Addr, NodeAddr),
    /// Deletes an entry of `NODE_ADDRS`.
    DeleteNodeAddr(Addr),
    /// Writes an entry of `ROUTES`.
    SetRoute(Ipv4Network, Route),
    /// Deletes an entry of `ROUTES`.
    DeleteRoute(Ipv4Network),
    /// Adds or replaces a route of ours in the kernel.
    SetKernelRoute(KernelRoute),
    /// Deletes a route of ours from the kernel.
    DeleteKernelRoute(KernelRoute),
}

impl Step {
    /// Whether it gives the index of a peer back.
    pub fn frees_an_index(&self) -> bool {
        matches!(self, Self::SetPeerInfo(_, info) if info.name_len == 0)
    }
}

/// The way from the actual to the desired state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes, in the order that leaves nothing half done: what a packet meets first comes
    /// last and goes first.
    pub steps: Vec<Step>,
    /// Routes of others that stand where one of ours should: they stay.
    pub conflicts: Vec<KernelRoute>,
}

/// The steps that turn `actual` into `desired`.
pub fn plan(desired: &Desired, actual: &Actual) -> Plan {
    let mut plan = Plan::default();
    let steps = &mut plan.steps;
    if desired.config != actual.config {
        steps.push(Step::SetConfig(desired.config));
    }
    steps.extend(
        changed(&desired.peer_info, &actual.peer_info)
            .map(|(id, info)| Step::SetPeerInfo(id, Box::new(info))),
    );
    steps.extend(changed(&desired.peers, &actual.peers).map(|(id, peer)| Step::SetPeer(id, peer)));
    steps.extend(
        changed(&desired.node_addrs, &actual.node_addrs)
            .map(|(address, node)| Step::SetNodeAddr(address, node)),
    );
    steps.extend(
        changed(&desired.routes, &actual.routes)
            .map(|(network, route)| Step::SetRoute(network, route)),
    );
    let (ours, foreign): (Vec<_>, Vec<_>) = actual
        .kernel_routes
        .iter()
        .copied()
        .partition(|route| route.protocol == ROUTE_PROTOCOL);
    let foreign: BTreeMap<_, _> = foreign
        .into_iter()
        .map(|route| (place(&route), route))
        .collect();
    // By place, because thousands are looked up; two in one place cannot both be there.
    let standing: BTreeMap<_, _> = ours.iter().map(|route| (place(route), route)).collect();
    for route in desired.kernel_routes.values() {
        // A replacing write would take the foreign route's place.
        if let Some(other) = foreign.get(&place(route)) {
            plan.conflicts.push(*other);
        } else if standing.get(&place(route)) != Some(&route) {
            steps.push(Step::SetKernelRoute(*route));
        }
    }

    steps.extend(
        ours.into_iter()
            .filter(|route| {
                let wanted = desired.kernel_routes.get(&route.destination);
                // One in the same place was replaced above.
                wanted.is_none_or(|wanted| place(wanted) != place(route))
            })
            .map(Step::DeleteKernelRoute),
    );
    steps.extend(gone(&desired.routes, &actual.routes).map(Step::DeleteRoute));
    steps.extend(gone(&desired.node_addrs, &actual.node_addrs).map(Step::DeleteNodeAddr));
    steps.extend(gone(&desired.peers, &actual.peers).map(|id| Step::SetPeer(id, Peer::default())));
    steps.extend(
        gone(&desired.peer_info, &actual.peer_info)
            .map(|id| Step::SetPeerInfo(id, Box::new(no_peer_info()))),
    );
    plan
}

/// The empty entry of `PEER_INFO`.
pub fn no_peer_info() -> PeerInfo {
    PeerInfo::new("", 0, 0)
}

impl Actual {
    /// Notes that `step` was done.
    pub fn note(&mut self, step: &Step) {
        match step.clone() {
            Step::SetConfig(config) => self.config = config,
            Step::SetPeer(id, peer) if peer == Peer::default() => drop(self.peers.remove(&id)),
            Step::SetPeer(id, peer) => drop(self.peers.insert(id, peer)),
            Step::SetPeerInfo(id, info) if info.name_len == 0 => drop(self.peer_info.remove(&id)),
            Step::SetPeerInfo(id, info) => drop(self.peer_info.insert(id, *info)),
            Step::SetNodeAddr(address, node) => drop(self.node_addrs.insert(address, node)),
            Step::DeleteNodeAddr(address) => drop(self.node_addrs.remove(&address)),
            Step::SetRoute(network, route) => drop(self.routes.insert(network, route)),
            Step::DeleteRoute(network) => drop(self.routes.remove(&network)),
            Step::SetKernelRoute(route) => {
                self.kernel_routes
                    .retain(|other| place(other) != place(&route));
                self.kernel_routes.push(route);
            }
            Step::DeleteKernelRoute(route) => self.kernel_routes.retain(|other| *other != route),
        }
    }
}

/// What identifies a route to the kernel: two with the same place cannot both be there.
fn place(route: &KernelRoute) -> (Ipv4Network, u32) {
    (route.destination, route.metric.unwrap_or_default())
}

fn changed<K: Copy + Ord, V: Copy + PartialEq>(
    desired: &BTreeMap<K, V>,
    actual: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    desired
        .iter()
        .filter(|(key, value)| actual.get(*key) != Some(*value))
        .map(|(key, value)| (*key, *value))
}

fn gone<K: Copy + Ord, V>(
    desired: &BTreeMap<K, V>,
    actual: &BTreeMap<K, V>,
) -> impl Iterator<Item = K> {
    actual
        .keys()
        .filter(|key| !desired.contains_key(*key))
        .copied()
}

#[cfg(test)]
mod tests;
