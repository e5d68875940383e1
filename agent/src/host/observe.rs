//! Reads the [`Facts`] of this host from the kernel.

use crate::{
    host::{
        best_route::best_route,
        facts::{COMMON_GSO_MAX, Facts, Hop, LocalUse, Uplink},
        ipip0, resolvers,
    },
    nodes::{inventory::Node, path::Underlay},
    other_networks::{found, table},
    problems::Problem,
};
use ipip_abi::Mac;
use ipip_netlink::{
    Address, Changes, Error, Link, Neighbour, Netlink, NextHop, Route, RouteKind, Rule,
};
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    path::PathBuf,
};
use tracing::{debug, warn};

/// What the configuration says about this host.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The uplinks; if empty, the routes decide.
    pub uplinks: Vec<String>,
    /// Addresses and networks beside this host that stay with its own network.
    pub local_addresses: Vec<Ipv4Network>,
    /// The files that name its resolvers.
    pub resolver_files: Vec<PathBuf>,
}

/// Interface, address and MAC of permanent neighbours.
pub type PermanentNeighbours = BTreeSet<(u32, Ipv4Addr, [u8; 6])>;

/// Reads the host's state, and caches links, addresses and routes until they change.
pub struct Observer {
    netlink: Netlink,
    settings: Settings,
    links: Vec<Link>,
    addresses: Vec<Address>,
    /// Interface and next hop of each route that has one.
    next_hops: BTreeSet<(u32, Ipv4Addr)>,
    /// Addresses and networks beside this host that stay with its own network.
    reserved: BTreeMap<Ipv4Network, LocalUse>,
    /// The routes that lead through other interfaces than `ipip0`.
    beside_tunnel: Vec<Route>,
    /// The rules of policy routing.
    rules: Vec<Rule>,
    /// Interfaces of the default routes.
    default_links: BTreeSet<u32>,
    /// Results of route lookups; `None` if no route leads to the address.
    lookups: HashMap<Underlay, Option<NextHop>>,
    /// Counts resyncs, modulo those in which all lookups are made again.
    resyncs: u32,
    /// This node, on whose addresses the results depend.
    own: Option<Node>,
    /// Chosen interfaces that cannot carry tunnel packets; each was logged once.
    unusable: BTreeSet<String>,
    /// What other pod networks have left.
    leftovers: Vec<Problem>,
    permanent: PermanentNeighbours,
}

impl Observer {
    /// An observer that has read nothing yet.
    pub fn new(netlink: Netlink, settings: Settings) -> Self {
        Self {
            netlink,
            settings,
            reserved: BTreeMap::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            next_hops: BTreeSet::new(),
            beside_tunnel: Vec::new(),
            rules: Vec::new(),
            resyncs: 0,
            default_links: BTreeSet::new(),
            lookups: HashMap::new(),
            own: None,
            unusable: BTreeSet::new(),
            leftovers: Vec::new(),
            permanent: PermanentNeighbours::new(),
        }
    }

    /// Returns the facts that the node `own` needs to reach `underlays`, the underlay addresses of its peers. Reads again only the
    /// state that `changes` names. No underlay address is reached through `ipip0`. For `further` addresses only the hops are
    /// added: they make no interface an uplink.
    pub fn facts(
        &mut self,
        own: &Node,
        underlays: &BTreeSet<Underlay>,
        further: &BTreeSet<Underlay>,
        changes: Changes,
    ) -> Result<Facts, Error> {
        let is_reported = changes.links || changes.addresses || changes.routes;
        if is_reported || changes.lost {
            // To ask the kernel for the routes to thousands of peers costs more than all that is read here.
            let are_others = self.refresh(is_reported || changes.tables)?;
            if is_reported || are_others {
                self.lookups.clear();
            } else {
                self.forget_some_lookups();
            }
        }
        let neighbours = self.neighbours()?;
        if self.own.as_ref() != Some(own) {
            self.own = Some(own.clone());
            self.lookups.clear();
        }
        self.lookups
            .retain(|it, _| underlays.contains(it) || further.contains(it));
        let mut routed = Vec::new();
        for &underlay in underlays {
            if let Some(hop) = self.look_up(underlay)? {
                routed.push((underlay.address, hop));
            }
        }
        let uplinks = self.uplinks(&own.internal_ips, routed.iter().map(|(_, hop)| hop.oif));
        for &underlay in further {
            if let Some(hop) = self.look_up_beside_tunnel(underlay)? {
                routed.push((underlay.address, hop));
            }
        }
        // Routes through other interfaces do not count.
        routed.retain(|(_, hop)| uplinks.contains_key(&hop.oif));
        let hops = routed.into_iter().map(|(address, found)| {
            let (uplink, next_hop) = (found.oif, found.gateway.unwrap_or(address));
            let hop = Hop {
                uplink,
                next_hop,
                mac: neighbours.get(&(uplink, next_hop)).copied(),
                source: found.source,
            };
            (address, hop)
        });
        let on_link = self.addresses.iter();
        let on_link = on_link.filter(|it| uplinks.contains_key(&it.index));
        Ok(Facts {
            on_link: on_link.map(|it| (it.index, it.network)).collect(),
            lan_hosts: BTreeMap::new(),
            local: self.addresses.iter().map(|it| it.network.ip()).collect(),
            gateways: self.gateways(&uplinks),
            of_other_networks: self.addresses_of_other_networks(),
            reserved: self.reserved.clone(),
            missing_uplinks: self.missing_uplinks(),
            hops: hops.collect(),
            uplinks,
        })
    }

    /// The interfaces as they were observed last.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Confirms the neighbour entries of `used`, given as uplink and next hop. The datapath's packets bypass the
    /// neighbour table, so the kernel does not know that the entries are in use.
    pub fn confirm(&mut self, used: impl IntoIterator<Item = (u32, Ipv4Addr)>) {
        for (link, next_hop) in used {
            if let Err(error) = self.netlink.use_neighbour(link, next_hop) {
                // The link may have just been deleted; a netlink event reports that.
                debug!(%next_hop, link, %error, "cannot confirm the next hop");
            }
        }
    }

    /// What other pod networks have left on this host.
    pub fn leftovers(&self) -> &[Problem] {
        &self.leftovers
    }

    /// The permanent neighbours as they were observed last.
    pub fn permanent_neighbours(&self) -> &PermanentNeighbours {
        &self.permanent
    }

    /// A part of the lookups is made again at each resync, so that all are at least every ten minutes: nobody reports that the
    /// kernel has learnt a gateway from a redirect.
    fn forget_some_lookups(&mut self) {
        const RESYNCS: u32 = 20;
        self.resyncs = (self.resyncs + 1) % RESYNCS;
        let turn = self.resyncs;
        let is_due = |it: &Underlay| u32::from(it.address) % RESYNCS == turn;
        self.lookups.retain(|it, _| !is_due(it));
    }

    /// Reads links, addresses and rules again, with `routes` also the routes, and returns whether those that decide about lookups are
    /// others than before.
    fn refresh(&mut self, routes: bool) -> Result<bool, Error> {
        let links = self.netlink.links()?;
        let ipip0 = links.iter().find(|link| link.name == ipip0::NAME);
        let ipip0 = ipip0.map(|link| link.index);
        let mut addresses = self.netlink.addresses()?;
        addresses.retain(|it| Some(it.index) != ipip0);
        // A small kernel may have none.
        let rules = self.netlink.rules().unwrap_or_else(|error| {
            debug!(%error, "cannot read the rules of policy routing");
            Vec::new()
        });
        let are_others = links != self.links || addresses != self.addresses || rules != self.rules;
        self.links = links;
        self.addresses = addresses;
        self.rules = rules;
        let resolvers = resolvers::read(&self.settings.resolver_files).into_iter();
        let resolvers = resolvers.map(|it| (Ipv4Network::from(it), LocalUse::Resolver));
        let local = self.settings.local_addresses.iter();
        let local = local.map(|it| (*it, LocalUse::Setting));
        self.reserved = local.chain(resolvers).collect();
        Ok(are_others | (routes && self.refresh_routes(ipip0)?))
    }

    /// Reads the routes again, and returns whether those beside the tunnel are others than before.
    fn refresh_routes(&mut self, ipip0: Option<u32>) -> Result<bool, Error> {
        let routes = self.netlink.routes()?;
        let is_beside = |it: &&Route| {
            let leads_out = it.oif.is_some() && it.kind == RouteKind::Unicast;
            leads_out && it.oif != ipip0
        };
        let beside_tunnel: Vec<Route> = routes.iter().filter(is_beside).copied().collect();
        let are_others = beside_tunnel != self.beside_tunnel;
        self.beside_tunnel = beside_tunnel;
        self.next_hops = routes
            .iter()
            .filter_map(|route| route.oif.zip(route.gateway))
            .collect();
        self.default_links = routes
            .iter()
            .filter(|route| route.destination.prefix() == 0)
            .filter_map(|route| route.oif)
            .collect();
        self.leftovers = found::problems(found::Host {
            links: &self.links,
            addresses: &self.addresses,
            routes: &routes,
            rules: &self.rules,
            pins: &found::pins(),
        });
        Ok(are_others)
    }

    /// Whether a default route leads through the interface with this index.
    pub fn has_default_route(&self, index: u32) -> bool {
        self.default_links.contains(&index)
    }

    /// The next hops that are gateways of this host: on an uplink, on an interface of a default route, or in a
    /// network to which one of its interfaces is connected. Other pod networks write routes with next hops that are
    /// in none of these, because only their own device resolves them.
    fn gateways(&self, uplinks: &BTreeMap<u32, Uplink>) -> BTreeSet<Ipv4Addr> {
        let is_gateway = |&&(link, next_hop): &&(u32, Ipv4Addr)| {
            uplinks.contains_key(&link)
                || self.default_links.contains(&link)
                || self.addresses.iter().any(|it| {
                    it.index == link
                        && it.network.prefix() < 32
                        && it.network.contains(next_hop)
                        && !self.is_of_other_network(link)
                })
        };
        let gateways = self.next_hops.iter().filter(is_gateway);
        gateways.map(|(_, next_hop)| *next_hop).collect()
    }

    /// The addresses on interfaces of other pod networks. A single address (/32) on any tunnel is one, too: no
    /// network of this host is behind it.
    fn addresses_of_other_networks(&self) -> BTreeSet<Ipv4Addr> {
        let is_tunnel = |index| {
            let link = self.links.iter().find(|link| link.index == index);
            let kind = link.and_then(|link| link.kind.as_deref());
            matches!(kind, Some("vxlan" | "geneve" | "ipip" | "gre" | "gretap"))
        };
        self.addresses
            .iter()
            .filter(|it| {
                self.is_of_other_network(it.index)
                    || it.network.prefix() == 32 && is_tunnel(it.index)
            })
            .map(|it| it.network.ip())
            .collect()
    }

    fn is_of_other_network(&self, index: u32) -> bool {
        let link = self.links.iter().find(|link| link.index == index);
        link.is_some_and(|link| table::of_link(&link.name).is_some())
    }

    /// The MAC of each next hop whose neighbour entry is usable now.
    fn neighbours(&mut self) -> Result<BTreeMap<(u32, Ipv4Addr), Mac>, Error> {
        let usable = |it: Neighbour| {
            let mac = it.mac.filter(|_| it.usable)?;
            Some(((it.index, it.address), Mac(mac)))
        };
        let neighbours = self.netlink.neighbours()?;
        let permanent = neighbours.iter().filter(|it| it.permanent);
        self.permanent = permanent
            .filter_map(|it| Some((it.index, it.address, it.mac?)))
            .collect();
        Ok(neighbours.into_iter().filter_map(usable).collect())
    }

    fn look_up(&mut self, underlay: Underlay) -> Result<Option<NextHop>, Error> {
        if let Some(cached) = self.lookups.get(&underlay) {
            return Ok(*cached);
        }
        let mut found = self.netlink.route_to(underlay.address)?;
        let accepted = self.accepted_sources(underlay);
        let is_accepted = |hop: NextHop| {
            let selected = hop.source.is_some_and(|source| accepted.contains(&source));
            selected || accepted.iter().any(|own| self.is_on(hop.oif, *own))
        };
        if !found.is_some_and(is_accepted) {
            // Policy routing may choose another route for a source that the peer accepts.
            found = self.route_from(&accepted, underlay.address)?.or(found);
        }
        let found = found.filter(|hop| !hop.local);
        self.lookups.insert(underlay, found);
        Ok(found)
    }

    /// The next hop without the agent's own routes into `ipip0`, of which one leads to each InternalIP of another realm.
    fn look_up_beside_tunnel(&mut self, underlay: Underlay) -> Result<Option<NextHop>, Error> {
        let found = self.look_up(underlay)?;
        let leads_into_tunnel = found.is_some_and(|hop| {
            let mut links = self.links.iter();
            links.any(|it| it.index == hop.oif && it.name == ipip0::NAME)
        });
        if !leads_into_tunnel {
            return Ok(found);
        }
        let found = match best_route(&self.beside_tunnel, underlay.address) {
            Some((link, gateway)) => {
                let found = self.netlink.route_over(link, underlay.address)?;
                found.filter(|hop| !hop.local && hop.gateway == gateway)
            }
            None => None,
        };
        self.lookups.insert(underlay, found);
        Ok(found)
    }

    /// The addresses of this host by which the peer with this underlay address knows this node.
    fn accepted_sources(&self, underlay: Underlay) -> Vec<Ipv4Addr> {
        let Some(own) = &self.own else {
            return Vec::new();
        };
        let known = if underlay.in_realm {
            own.internal_ips.as_slice()
        } else {
            own.public_endpoint.as_slice()
        };
        let is_local = |known: &&Ipv4Addr| {
            let mut addresses = self.addresses.iter();
            addresses.any(|it| it.network.ip() == **known)
        };
        known.iter().filter(is_local).copied().collect()
    }

    /// The route of packets from the first of `sources` that is on the interface through which they leave.
    fn route_from(
        &mut self,
        sources: &[Ipv4Addr],
        destination: Ipv4Addr,
    ) -> Result<Option<NextHop>, Error> {
        for &source in sources {
            let found = self.netlink.route_from(source, destination)?;
            if let Some(hop) = found.filter(|hop| !hop.local && self.is_on(hop.oif, source)) {
                let source = Some(source);
                return Ok(Some(NextHop { source, ..hop }));
            }
        }
        Ok(None)
    }

    fn is_on(&self, link: u32, address: Ipv4Addr) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.any(|it| it.index == link && it.network.ip() == address)
    }

    fn missing_uplinks(&self) -> BTreeSet<String> {
        let is_present = |name: &&String| self.links.iter().any(|link| link.name == **name);
        self.settings
            .uplinks
            .iter()
            .filter(|name| !is_present(name))
            .cloned()
            .collect()
    }

    /// Returns the configured uplinks. If none is configured, tunnel packets can arrive on the interfaces that
    /// lead to peers, on those of the default routes, and on those with an address of this node.
    fn uplinks(
        &mut self,
        own: &[Ipv4Addr],
        towards_peers: impl Iterator<Item = u32>,
    ) -> BTreeMap<u32, Uplink> {
        let with_own_address = self
            .addresses
            .iter()
            .filter(|it| own.contains(&it.network.ip()))
            .map(|it| it.index);
        let chosen: BTreeSet<u32> = if self.settings.uplinks.is_empty() {
            let default_links = self.default_links.iter().copied();
            towards_peers
                .chain(with_own_address)
                .chain(default_links)
                .collect()
        } else {
            let is_configured = |link: &&Link| self.settings.uplinks.contains(&link.name);
            let configured = self.links.iter().filter(is_configured);
            configured.map(|link| link.index).collect()
        };
        let mut unusable = BTreeSet::new();
        let mut uplinks = BTreeMap::new();
        for link in &self.links {
            if !chosen.contains(&link.index) || link.name == ipip0::NAME || link.loopback {
                continue;
            }
            if !link.ethernet {
                unusable.insert(link.name.clone());
                continue;
            }
            let uplink = Uplink {
                name: link.name.clone(),
                mac: Some(Mac(link.mac)),
                mtu: link.mtu.try_into().unwrap_or(u16::MAX),
                gso_max: link.gso_ipv4_max.unwrap_or(COMMON_GSO_MAX),
                addresses: self
                    .addresses
                    .iter()
                    .filter(|it| it.index == link.index)
                    .map(|it| it.network)
                    .collect(),
            };
            uplinks.insert(link.index, uplink);
        }
        for name in unusable.difference(&self.unusable) {
            warn!(
                interface = name,
                "not used as an uplink: its frames have no Ethernet header"
            );
        }
        self.unusable = unusable;
        uplinks
    }
}
