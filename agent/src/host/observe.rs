//! Reads the [`Facts`] of this host from the kernel.

use crate::host::{
    facts::{COMMON_GSO_MAX, Facts, Hop, Uplink},
    ipip0,
};
use ipip_abi::Mac;
use ipip_netlink::{Address, Changes, Error, Link, Neighbour, Netlink};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};
use tracing::{debug, warn};

/// Reads the host's state, and caches links, addresses and routes until they change.
pub struct Observer {
    netlink: Netlink,
    /// The configured uplinks; if empty, the routes decide.
    configured: Vec<String>,
    links: Vec<Link>,
    addresses: Vec<Address>,
    gateways: BTreeSet<Ipv4Addr>,
    /// Interfaces of the default routes.
    default_links: BTreeSet<u32>,
    /// Results of route lookups: interface and next hop, or `None` if no route leads to the address.
    lookups: HashMap<Ipv4Addr, Option<(u32, Ipv4Addr)>>,
    /// Chosen interfaces that cannot carry tunnel packets; each was logged once.
    unusable: BTreeSet<String>,
}

impl Observer {
    /// An observer that has read nothing yet. Without `uplinks`, the routes decide which interfaces are uplinks.
    pub fn new(netlink: Netlink, uplinks: Vec<String>) -> Self {
        Self {
            netlink,
            configured: uplinks,
            links: Vec::new(),
            addresses: Vec::new(),
            gateways: BTreeSet::new(),
            default_links: BTreeSet::new(),
            lookups: HashMap::new(),
            unusable: BTreeSet::new(),
        }
    }

    /// Returns the facts that a node with the InternalIPs `own` needs to reach `underlays`, the underlay addresses
    /// of its peers. Reads again only the state that `changes` names. No underlay address is reached through `ipip0`.
    pub fn facts(
        &mut self,
        own: &[Ipv4Addr],
        underlays: &BTreeSet<Ipv4Addr>,
        changes: Changes,
    ) -> Result<Facts, Error> {
        if changes.links || changes.addresses || changes.routes || changes.lost {
            self.refresh()?;
        }
        let neighbours = self.neighbours()?;
        self.lookups
            .retain(|address, _| underlays.contains(address));
        let mut routed = Vec::new();
        for &address in underlays {
            if let Some((link, next_hop)) = self.look_up(address)? {
                routed.push((address, link, next_hop));
            }
        }
        let uplinks = self.uplinks(own, routed.iter().map(|(_, link, _)| *link));
        // Routes through other interfaces do not count.
        routed.retain(|(_, link, _)| uplinks.contains_key(link));
        let hops = routed.into_iter().map(|(address, uplink, next_hop)| {
            let mac = neighbours.get(&(uplink, next_hop)).copied();
            let hop = Hop {
                uplink,
                next_hop,
                mac,
            };
            (address, hop)
        });
        Ok(Facts {
            local: self.addresses.iter().map(|it| it.network.ip()).collect(),
            gateways: self.gateways.clone(),
            missing_uplinks: self.missing_uplinks(),
            hops: hops.collect(),
            uplinks,
        })
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

    fn refresh(&mut self) -> Result<(), Error> {
        self.lookups.clear();
        self.links = self.netlink.links()?;
        self.addresses = self.netlink.addresses()?;
        let ipip0 = self.links.iter().find(|link| link.name == ipip0::NAME);
        let ipip0 = ipip0.map(|link| link.index);
        self.addresses.retain(|it| Some(it.index) != ipip0);
        let routes = self.netlink.routes()?;
        self.gateways = routes.iter().filter_map(|route| route.gateway).collect();
        self.default_links = routes
            .iter()
            .filter(|route| route.destination.prefix() == 0)
            .filter_map(|route| route.oif)
            .collect();
        Ok(())
    }

    /// The MAC of each next hop whose neighbour entry is usable now.
    fn neighbours(&mut self) -> Result<BTreeMap<(u32, Ipv4Addr), Mac>, Error> {
        let usable = |it: Neighbour| {
            let mac = it.mac.filter(|_| it.usable)?;
            Some(((it.index, it.address), Mac(mac)))
        };
        let neighbours = self.netlink.neighbours()?;
        Ok(neighbours.into_iter().filter_map(usable).collect())
    }

    fn look_up(&mut self, address: Ipv4Addr) -> Result<Option<(u32, Ipv4Addr)>, Error> {
        if let Some(cached) = self.lookups.get(&address) {
            return Ok(*cached);
        }
        let found = self
            .netlink
            .route_to(address)?
            .filter(|hop| !hop.local)
            .map(|hop| (hop.oif, hop.gateway.unwrap_or(address)));
        self.lookups.insert(address, found);
        Ok(found)
    }

    fn missing_uplinks(&self) -> BTreeSet<String> {
        let is_present = |name: &&String| self.links.iter().any(|link| link.name == **name);
        self.configured
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
        let chosen: BTreeSet<u32> = if self.configured.is_empty() {
            let default_links = self.default_links.iter().copied();
            towards_peers
                .chain(with_own_address)
                .chain(default_links)
                .collect()
        } else {
            let is_configured = |link: &&Link| self.configured.contains(&link.name);
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
