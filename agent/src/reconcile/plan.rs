//! Computes the writes that lead from the actual to the desired state. Pure.

use crate::reconcile::{
    desired::Desired,
    host_route::{ForeignRoute, HostRoute, HostRouteKey},
};
use ipip_abi::{Addr, Config as MapConfig, NodeAddr, Peer, PeerInfo, Route, probe::ProbeSecret};
use ipnetwork::Ipv4Network;
use std::collections::BTreeMap;

/// The current content of the maps and of the host's main table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actual {
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
    /// The agent's routes in the host's main table; `None` for a route that another program edited into
    /// something that the agent never writes.
    pub host_routes: BTreeMap<HostRouteKey, Option<HostRoute>>,
    /// The other routes of the main table: the first one of each key.
    pub foreign_routes: BTreeMap<HostRouteKey, ForeignRoute>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Writes `CONFIG`.
    SetConfig(MapConfig),
    /// Writes an entry of `PEERS`; zero clears it.
    SetPeer(u16, Peer),
    /// Writes an entry of `PROBE_SECRETS`, and clears what is remembered of probes under the secret before; zero clears it.
    SetProbeSecret(u16, ProbeSecret),
    /// Writes an entry of `CANDIDATES`; zero clears it.
    SetCandidate(u32, Peer),
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
    /// Adds or replaces one of the agent's routes in the main table. It then comes before a foreign route with this
    /// key.
    SetHostRoute(HostRouteKey, HostRoute),
    /// Deletes one of the agent's routes from the main table.
    DeleteHostRoute(HostRouteKey),
}

impl Step {
    /// Whether the step frees the index of a peer.
    pub fn frees_an_index(&self) -> bool {
        matches!(self, Self::SetPeerInfo(_, info) if info.name_len == 0)
    }

    /// Whether the step may change which peers can be probed, and how.
    pub fn is_of_probes(&self) -> bool {
        matches!(
            self,
            Self::SetProbeSecret(..) | Self::SetCandidate(..) | Self::SetPeerInfo(..)
        )
    }
}

/// The difference between the actual and the desired state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes. Their order keeps the maps consistent after each of them: an entry is written after the entries
    /// that it refers to, and deleted before them.
    pub steps: Vec<Step>,
    /// The foreign routes that concern a desired route.
    pub conflicts: Vec<Conflict>,
}

/// A foreign route that concerns a desired route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// Key of the foreign route.
    pub key: HostRouteKey,
    /// The foreign route.
    pub route: ForeignRoute,
    /// Which of the two routes has effect.
    pub kind: ConflictKind,
}

/// Which route has effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ConflictKind {
    /// The foreign one: it leads to a peer's InternalIP, and ours is not written.
    TheirsStays,
    /// Ours: both lead to the pods of a peer, and ours comes first. The foreign one stays in the table.
    OursIsFirst,
    /// The foreign one: it leads to a part of the pods of a peer.
    TheirsIsLonger,
}

/// Returns the steps that turn `actual` into `desired`.
pub fn diff(desired: &Desired, actual: &Actual) -> Plan {
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
        changed(&desired.candidates, &actual.candidates)
            .map(|(index, path)| Step::SetCandidate(index, path)),
    );
    steps.extend(
        changed(&desired.probe_secrets, &actual.probe_secrets)
            .map(|(id, secret)| Step::SetProbeSecret(id, secret)),
    );
    steps.extend(
        changed(&desired.node_addrs, &actual.node_addrs)
            .map(|(address, node)| Step::SetNodeAddr(address, node)),
    );
    steps.extend(
        changed(&desired.routes, &actual.routes)
            .map(|(network, route)| Step::SetRoute(network, route)),
    );
    for (key, route) in &desired.host_routes {
        let foreign = actual.foreign_routes.get(key);
        // A route to pods that is not ours is one of another pod network, but one to an InternalIP is likely to be
        // the operator's.
        if foreign.is_some() && !leads_to_pods(desired, key.destination) {
            continue;
        }
        let is_behind = foreign.is_some_and(|foreign| foreign.is_first);
        if is_behind || actual.host_routes.get(key) != Some(&Some(*route)) {
            steps.push(Step::SetHostRoute(*key, *route));
        }
    }

    steps.extend(gone(&desired.host_routes, &actual.host_routes).map(Step::DeleteHostRoute));
    steps.extend(gone(&desired.routes, &actual.routes).map(Step::DeleteRoute));
    steps.extend(gone(&desired.node_addrs, &actual.node_addrs).map(Step::DeleteNodeAddr));
    steps.extend(
        gone(&desired.probe_secrets, &actual.probe_secrets)
            .map(|id| Step::SetProbeSecret(id, ProbeSecret::default())),
    );
    steps.extend(
        gone(&desired.candidates, &actual.candidates)
            .map(|index| Step::SetCandidate(index, Peer::default())),
    );
    steps.extend(gone(&desired.peers, &actual.peers).map(|id| Step::SetPeer(id, Peer::default())));
    steps.extend(
        gone(&desired.peer_info, &actual.peer_info)
            .map(|id| Step::SetPeerInfo(id, Box::new(no_peer_info()))),
    );
    plan.conflicts = conflicts(desired, actual);
    plan
}

fn conflicts(desired: &Desired, actual: &Actual) -> Vec<Conflict> {
    let conflict = |(key, route): (&HostRouteKey, &ForeignRoute)| {
        let destination = key.destination;
        let kind = if !desired.host_routes.contains_key(key) {
            let mut wider = (1..destination.prefix()).filter_map(|prefix| {
                let within = Ipv4Network::new(destination.network(), prefix).ok()?;
                Ipv4Network::new(within.network(), prefix).ok()
            });
            let is_part = wider.any(|network| leads_to_pods(desired, network));
            is_part.then_some(ConflictKind::TheirsIsLonger)?
        } else if leads_to_pods(desired, destination) {
            ConflictKind::OursIsFirst
        } else {
            ConflictKind::TheirsStays
        };
        Some(Conflict {
            key: *key,
            route: *route,
            kind,
        })
    };
    actual.foreign_routes.iter().filter_map(conflict).collect()
}

/// Whether `network` is a pod CIDR of a peer.
fn leads_to_pods(desired: &Desired, network: Ipv4Network) -> bool {
    let route = desired.routes.get(&network);
    route.is_some_and(|route| route.kind == Route::PODS && route.peer != 0)
}

/// The empty entry of `PEER_INFO`.
pub fn no_peer_info() -> PeerInfo {
    PeerInfo::new("", 0, 0)
}

impl Actual {
    /// Records that `step` was written.
    pub fn record(&mut self, step: &Step) {
        match step.clone() {
            Step::SetConfig(config) => self.config = config,
            Step::SetPeer(id, peer) if peer == Peer::default() => drop(self.peers.remove(&id)),
            Step::SetPeer(id, peer) => drop(self.peers.insert(id, peer)),
            Step::SetProbeSecret(id, secret) if !secret.is_set() => {
                self.probe_secrets.remove(&id);
            }
            Step::SetProbeSecret(id, secret) => drop(self.probe_secrets.insert(id, secret)),
            Step::SetCandidate(index, path) if path == Peer::default() => {
                self.candidates.remove(&index);
            }
            Step::SetCandidate(index, path) => drop(self.candidates.insert(index, path)),
            Step::SetPeerInfo(id, info) if info.name_len == 0 => drop(self.peer_info.remove(&id)),
            Step::SetPeerInfo(id, info) => drop(self.peer_info.insert(id, *info)),
            Step::SetNodeAddr(address, node) => drop(self.node_addrs.insert(address, node)),
            Step::DeleteNodeAddr(address) => drop(self.node_addrs.remove(&address)),
            Step::SetRoute(network, route) => drop(self.routes.insert(network, route)),
            Step::DeleteRoute(network) => drop(self.routes.remove(&network)),
            Step::SetHostRoute(key, route) => {
                self.host_routes.insert(key, Some(route));
                if let Some(foreign) = self.foreign_routes.get_mut(&key) {
                    foreign.is_first = false;
                }
            }
            Step::DeleteHostRoute(key) => drop(self.host_routes.remove(&key)),
        }
    }
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

fn gone<K: Copy + Ord, V, W>(
    desired: &BTreeMap<K, V>,
    actual: &BTreeMap<K, W>,
) -> impl Iterator<Item = K> {
    actual
        .keys()
        .filter(|key| !desired.contains_key(*key))
        .copied()
}

#[cfg(test)]
mod tests;
