//! The only writer of maps and host routes. It alone converts the plain values of a plan into netlink routes and map
//! keys.

use crate::reconcile::{
    host_route::{ForeignRoute, HostRoute, HostRouteKey, NEXT_HOP, ROUTE_PROTOCOL},
    peer_ids,
    plan::{Actual, Step},
    probe_maps,
};
use aya::{
    Pod,
    maps::{Array, MapData, MapError, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use ipip_abi::{
    Addr, Peer, PeerInfo, PeerTraffic,
    maps::MAX_PEERS,
    probe::{CANDIDATES_PER_PEER, ProbeSecret},
};
use ipip_datapath::{
    Error as DatapathError, Maps, Pins, absent_is_fine, first_values, next_hops_until,
};
use ipip_netlink::{Netlink, Route as KernelRoute, RouteKind, Scope};
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    time::Duration,
};

/// A map or route could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pins cannot be opened.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The kernel refused to list or change routes.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The kernel's clock could not be read.
    #[error("cannot read the monotonic clock: {0}")]
    Clock(#[source] io::Error),
    /// A map could not be read or written.
    #[error("cannot {action}: {source}")]
    Map {
        /// The operation.
        action: String,
        /// The reason.
        source: MapError,
    },
}

/// Writes the steps of plans, and caches the actual state.
pub struct Writer {
    maps: Maps,
    netlink: Netlink,
    actual: Actual,
    /// The agent's routes as the kernel listed them; a deletion must name exactly these attributes.
    listed: Vec<KernelRoute>,
}

impl Writer {
    /// Opens the pinned maps and reads the entries that an earlier agent left.
    pub fn open(pins: &Pins, netlink: Netlink) -> Result<Self, Error> {
        let mut writer = Self {
            maps: Maps::open(pins)?,
            netlink,
            actual: Actual::default(),
            listed: Vec::new(),
        };
        writer.read_maps()?;
        Ok(writer)
    }

    /// The state of maps and routes after the last read or write.
    pub fn actual(&self) -> &Actual {
        &self.actual
    }

    /// The netlink port through which routes are changed.
    pub fn port(&self) -> Result<u32, Error> {
        Ok(self.netlink.port()?)
    }

    /// The maps, for reading.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The index of each peer in the maps.
    pub fn ids(&self) -> peer_ids::Ids {
        peer_ids::adopt(self.actual.peer_info.iter().map(|(id, info)| (*id, info)))
    }

    /// Reads the main table again, because other programs change it too.
    pub fn read_routes(&mut self) -> Result<(), Error> {
        let routes = self.netlink.routes()?;
        self.actual.foreign_routes = foreign_routes(&routes);
        let ours: Vec<_> = routes
            .into_iter()
            .filter(|route| route.protocol == ROUTE_PROTOCOL)
            .collect();
        self.actual.host_routes.clear();
        for route in &ours {
            self.actual
                .host_routes
                .entry(route_key(route))
                // The kernel lists a route with several next hops once for each. The agent writes no such route.
                .and_modify(|edited| *edited = None)
                .or_insert_with(|| from_kernel(route));
        }
        self.listed = ours;
        Ok(())
    }

    /// Reads the maps again, which repairs changes that another program made.
    pub fn read_maps(&mut self) -> Result<(), Error> {
        let maps = &self.maps;
        self.actual.config = maps.config.get(&0, 0).map_err(at("read CONFIG"))?;
        let is_path = |path: &Peer| *path != Peer::default();
        self.actual.peers = entries(&maps.peers, MAX_PEERS, is_path).map_err(at("read PEERS"))?;
        let used = |info: &PeerInfo| info.name_len != 0;
        self.actual.peer_info =
            entries(&maps.peer_info, MAX_PEERS, used).map_err(at("read PEER_INFO"))?;
        // An index without a name has neither: a name is written before them and deleted after them. So a small cluster does not
        // read the whole arrays.
        let peers = self.actual.peer_info.last_key_value();
        let peers = peers.map_or(0, |(id, _)| u32::from(*id) + 1);
        let used = |secret: &ProbeSecret| *secret != ProbeSecret::default();
        self.actual.probe_secrets =
            entries(&maps.probe_secrets, peers, used).map_err(at("read PROBE_SECRETS"))?;
        self.actual.candidates = entries(&maps.candidates, peers * CANDIDATES_PER_PEER, is_path)
            .map_err(at("read CANDIDATES"))?;
        let node_addrs = maps.node_addrs.entries().map_err(at("read NODE_ADDRS"))?;
        self.actual.node_addrs = node_addrs.into_iter().collect();
        let routes = maps.routes.entries().map_err(at("read ROUTES"))?;
        let routes = routes.iter().map(|(key, route)| (network(key), *route));
        self.actual.routes = routes.collect();
        Ok(())
    }

    /// Lets the programs use the next hops' MACs for the next minute. If the agent ends, the kernel looks next hops up
    /// again after that time.
    pub fn vouch_for_next_hops(&mut self) -> Result<(), Error> {
        // Longer than the resync interval. With the kernel's coarse units at most a minute.
        const VALID: Duration = Duration::from_secs(49);
        let until = next_hops_until(VALID).map_err(Error::Clock)?;
        let written = self.maps.next_hops_until.set(0, until, 0);
        written.map_err(at("write NEXT_HOPS_UNTIL"))
    }

    /// Writes one step.
    pub fn apply(&mut self, step: &Step) -> Result<(), Error> {
        self.write(step)?;
        self.actual.record(step);
        Ok(())
    }

    fn write(&mut self, step: &Step) -> Result<(), Error> {
        let maps = &mut self.maps;
        let written = match step {
            Step::SetConfig(config) => maps.config.set(0, config, 0),
            Step::SetPeer(id, peer) => maps.peers.set((*id).into(), peer, 0),
            Step::SetProbeSecret(id, secret) => probe_maps::set_secret(maps, *id, secret),
            Step::SetCandidate(index, path) => maps.candidates.set(*index, path, 0),
            Step::SetPeerInfo(id, info) => {
                let index = u32::from(*id);
                // The next peer with this index must not inherit the counters of this one.
                let cleared = if info.name_len == 0 {
                    clear_traffic(maps, index)
                } else {
                    Ok(())
                };
                cleared.and_then(|()| maps.peer_info.set(index, **info, 0))
            }
            Step::SetNodeAddr(address, node) => maps.node_addrs.insert(address, node, 0),
            Step::DeleteNodeAddr(address) => absent_is_fine(maps.node_addrs.remove(address)),
            Step::SetRoute(network, route) => maps.routes.insert(&key(*network), route, 0),
            Step::DeleteRoute(network) => absent_is_fine(maps.routes.remove(&key(*network))),
            Step::SetHostRoute(key, route) => return self.set_host_route(*key, *route),
            Step::DeleteHostRoute(key) => return self.delete_host_route(*key),
        };
        written.map_err(at(&format!("write {step:?}")))
    }

    fn set_host_route(&mut self, key: HostRouteKey, route: HostRoute) -> Result<(), Error> {
        if self.actual.foreign_routes.contains_key(&key) {
            // A replacement would replace the foreign route. Ours is added in front of it instead, which the kernel
            // refuses while the same route exists behind it.
            self.delete_host_route(key)?;
            self.netlink.prepend_route(&to_kernel(key, route))?;
        } else {
            self.netlink.replace_route(&to_kernel(key, route))?;
        }
        self.listed.retain(|other| route_key(other) != key);
        self.listed.push(to_kernel(key, route));
        Ok(())
    }

    fn delete_host_route(&mut self, key: HostRouteKey) -> Result<(), Error> {
        for route in self.listed.iter().filter(|it| route_key(it) == key) {
            match self.netlink.delete_route(route) {
                // The kernel deletes a route by itself when its interface or source address is removed.
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        self.listed.retain(|it| route_key(it) != key);
        Ok(())
    }
}

/// The first foreign route of each key. The kernel lists, and uses, routes of one key in their order.
fn foreign_routes(routes: &[KernelRoute]) -> BTreeMap<HostRouteKey, ForeignRoute> {
    let mut ours_seen = BTreeSet::new();
    let mut foreign = BTreeMap::new();
    for route in routes {
        let key = route_key(route);
        if route.protocol == ROUTE_PROTOCOL {
            ours_seen.insert(key);
        } else {
            foreign.entry(key).or_insert(ForeignRoute {
                protocol: route.protocol,
                oif: route.oif,
                gateway: route.gateway,
                is_first: !ours_seen.contains(&key),
            });
        }
    }
    foreign
}

fn route_key(route: &KernelRoute) -> HostRouteKey {
    HostRouteKey {
        destination: route.destination,
        metric: route.metric.unwrap_or_default(),
    }
}

/// Returns the [`HostRoute`] that [`to_kernel`] converts into exactly `route`, if there is one.
fn from_kernel(route: &KernelRoute) -> Option<HostRoute> {
    let candidate = match route.oif {
        Some(index) => HostRoute::Interface {
            index,
            source: route.source,
            mtu: route.mtu,
        },
        None => HostRoute::Unreachable,
    };
    (to_kernel(route_key(route), candidate) == *route).then_some(candidate)
}

fn to_kernel(key: HostRouteKey, route: HostRoute) -> KernelRoute {
    let HostRouteKey {
        destination,
        metric,
    } = key;
    let on_link = KernelRoute {
        metric: (metric != 0).then_some(metric),
        protocol: ROUTE_PROTOCOL,
        ..KernelRoute::on_link(destination, 0)
    };
    match route {
        HostRoute::Interface { index, source, mtu } => KernelRoute {
            oif: Some(index),
            source,
            mtu,
            gateway: Some(NEXT_HOP),
            onlink: true,
            scope: Scope::Global,
            ..on_link
        },
        HostRoute::Unreachable => KernelRoute {
            oif: None,
            scope: Scope::Global,
            kind: RouteKind::Unreachable,
            ..on_link
        },
    }
}

fn clear_traffic(maps: &mut Maps, index: u32) -> Result<(), MapError> {
    let zero = vec![PeerTraffic::default(); nr_cpus().map_err(|(_, source)| source)?];
    let values = PerCpuValues::try_from(zero)?;
    maps.peer_traffic.set(index, values, 0)
}

/// Those of the first `count` entries of an array for which `is_used` holds, by index.
fn entries<I: TryFrom<u32> + Ord, T: Pod>(
    array: &Array<MapData, T>,
    count: u32,
    is_used: impl Fn(&T) -> bool,
) -> Result<BTreeMap<I, T>, MapError> {
    let all = (0..).zip(first_values(array, count)?);
    let used = all.filter(|(_, entry)| is_used(entry));
    let used = used.filter_map(|(index, entry)| Some((index.try_into().ok()?, entry)));
    Ok(used.collect())
}

fn key(network: Ipv4Network) -> Key<Addr> {
    Key::new(network.prefix().into(), network.network().into())
}

fn network(key: &Key<Addr>) -> Ipv4Network {
    let prefix_len = key.prefix_len().min(32) as u8;
    Ipv4Network::new(Ipv4Addr::from(key.data()), prefix_len)
        .unwrap_or_else(|_| Ipv4Addr::from(key.data()).into())
}

fn at(action: &str) -> impl FnOnce(MapError) -> Error {
    let action = action.to_owned();
    move |source| Error::Map { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: HostRoute = HostRoute::Interface {
        index: 9,
        source: Some(Ipv4Addr::new(10, 0, 0, 11)),
        mtu: Some(1480),
    };

    fn keys() -> (HostRouteKey, HostRouteKey) {
        let network = Ipv4Network::new(Ipv4Addr::new(10, 42, 1, 0), 24).unwrap();
        (
            HostRouteKey::best(network),
            HostRouteKey::last_resort(network),
        )
    }

    #[test]
    fn each_route_of_the_agent_is_the_same_after_its_way_through_the_kernels_form() {
        let (best, last_resort) = keys();
        for (key, route) in [(best, TUNNEL), (last_resort, HostRoute::Unreachable)] {
            let kernel = to_kernel(key, route);
            assert_eq!(kernel.protocol, ROUTE_PROTOCOL);
            assert_eq!(route_key(&kernel), key);
            assert_eq!(from_kernel(&kernel), Some(route));
        }
    }

    #[test]
    fn a_foreign_route_is_first_unless_ours_comes_before_it() {
        let (best, last_resort) = keys();
        let ours = to_kernel(best, TUNNEL);
        let theirs = KernelRoute {
            protocol: KernelRoute::PROTOCOL_STATIC,
            ..KernelRoute::through(best.destination, best.destination.network(), 3)
        };
        let is_first = |routes: &[KernelRoute]| foreign_routes(routes)[&best].is_first;
        assert!(is_first(&[theirs]));
        assert!(is_first(&[theirs, ours]));
        assert!(!is_first(&[ours, theirs]));
        // A route with another metric has another key.
        assert!(is_first(&[
            to_kernel(last_resort, HostRoute::Unreachable),
            theirs
        ]));
    }

    #[test]
    fn a_route_that_another_program_edited_is_none_of_the_agents_forms() {
        let (best, last_resort) = keys();
        let tunnel = to_kernel(best, TUNNEL);
        let unreachable = to_kernel(last_resort, HostRoute::Unreachable);
        let edited = [
            KernelRoute {
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
                ..tunnel
            },
            // As an agent of an earlier version writes it.
            KernelRoute {
                gateway: None,
                onlink: false,
                scope: Scope::Link,
                ..tunnel
            },
            KernelRoute {
                onlink: false,
                ..tunnel
            },
            KernelRoute {
                oif: None,
                ..tunnel
            },
            KernelRoute {
                kind: RouteKind::Blackhole,
                ..unreachable
            },
            KernelRoute {
                mtu: Some(1280),
                ..unreachable
            },
        ];
        for route in edited {
            assert_eq!(from_kernel(&route), None, "{route:?}");
        }
    }
}
