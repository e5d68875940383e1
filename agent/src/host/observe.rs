//! Finds the [`Facts`] of this host by asking the kernel.

use crate::{
    config::Config,
    host::{
        facts::{COMMON_GSO_MAX, Facts, Hop, Uplink},
        ipip0,
    },
    nodes::{
        inventory::{Inventory, Node},
        path,
    },
};
use ipip_abi::Mac;
use ipip_netlink::{Address, Changes, Error, Link, Neighbour, Netlink};
use ipnetwork::Ipv4Network;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};
use tracing::warn;

/// What the kernel said of this host's links, addresses and routes, as far as it is still true.
pub struct Underlay {
    netlink: Netlink,
    /// Interfaces that the configuration names; none means that the routes decide.
    configured: Vec<String>,
    links: Vec<Link>,
    addresses: Vec<Address>,
    gateways: BTreeSet<Ipv4Addr>,
    /// Interfaces of the default routes.
    default_links: BTreeSet<u32>,
    /// Where the host sends to each address that was asked for: interface and next hop.
    ways: HashMap<Ipv4Addr, Option<(u32, Ipv4Addr)>>,
    /// Interfaces that cannot carry tunnel packets and about which we have complained.
    unusable: BTreeSet<String>,
}

impl Underlay {
    /// Asks nothing yet.
    pub fn new(netlink: Netlink, config: &Config) -> Self {
        Self {
            netlink,
            configured: config.uplinks.clone(),
            links: Vec::new(),
            addresses: Vec::new(),
            gateways: BTreeSet::new(),
            default_links: BTreeSet::new(),
            ways: HashMap::new(),
            unusable: BTreeSet::new(),
        }
    }

    /// The facts that `own` needs to reach the nodes of `inventory`, asking again for what may have
    /// changed. Nothing is ever reached through `ipip0`.
    pub fn facts(
        &mut self,
        own: &Node,
        inventory: &Inventory,
        changes: Changes,
    ) -> Result<Facts, Error> {
        if changes.links || changes.addresses || changes.routes || changes.lost {
            self.refresh()?;
        }
        let neighbours = self.neighbours()?;
        let peers = inventory.nodes.iter().filter(|node| node.name != own.name);
        let asked: BTreeSet<Ipv4Addr> = peers
            .filter_map(|peer| path::underlay(own, peer).ok())
            .collect();
        self.ways.retain(|address, _| asked.contains(address));
        let mut ways = Vec::new();
        for address in asked {
            if let Some((link, next_hop)) = self.way(address)? {
                ways.push((address, link, next_hop));
            }
        }
        let uplinks = self.uplinks(own, ways.iter().map(|(_, link, _)| *link));
        // A way through an interface that is no uplink is none.
        ways.retain(|(_, uplink, _)| uplinks.contains_key(uplink));
        let hops = ways.into_iter().map(|(address, uplink, next_hop)| {
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

    /// Has the kernel confirm the next hops `used`, because packets that pass it by do not.
    pub fn confirm(&mut self, used: impl IntoIterator<Item = (u32, Ipv4Addr)>) {
        for (link, next_hop) in used {
            if let Err(error) = self.netlink.use_neighbour(link, next_hop) {
                // The link may just be going; then a change of it is reported too.
                tracing::debug!(%next_hop, link, %error, "the next hop is not confirmed");
            }
        }
    }

    fn refresh(&mut self) -> Result<(), Error> {
        self.ways.clear();
        self.links = self.netlink.links()?;
        self.addresses = self.netlink.addresses()?;
        let ipip0 = self.links.iter().find(|link| link.name == ipip0::NAME);
        let ipip0 = ipip0.map(|link| link.index);
        self.addresses.retain(|it| Some(it.index) != ipip0);
        let routes = self.netlink.routes()?;
        self.gateways = routes.iter().filter_map(|route| route.gateway).collect();
        let is_default = |network: &Ipv4Network| network.prefix() == 0;
        self.default_links = routes
            .iter()
            .filter(|route| is_default(&route.destination))
            .filter_map(|route| route.oif)
            .collect();
        Ok(())
    }

    /// The MAC of each next hop to which the kernel would send now.
    fn neighbours(&mut self) -> Result<BTreeMap<(u32, Ipv4Addr), Mac>, Error> {
        let usable = |it: Neighbour| {
            let mac = it.mac.filter(|_| it.usable)?;
            Some(((it.index, it.address), Mac(mac)))
        };
        let neighbours = self.netlink.neighbours()?;
        Ok(neighbours.into_iter().filter_map(usable).collect())
    }

    fn way(&mut self, address: Ipv4Addr) -> Result<Option<(u32, Ipv4Addr)>, Error> {
        if let Some(way) = self.ways.get(&address) {
            return Ok(*way);
        }
        let found = self.netlink.route_to(address)?;
        let way = found
            .filter(|hop| !hop.local)
            .map(|hop| (hop.oif, hop.gateway.unwrap_or(address)));
        self.ways.insert(address, way);
        Ok(way)
    }

    fn missing_uplinks(&self) -> BTreeSet<String> {
        let is_here = |name: &&String| self.links.iter().any(|link| link.name == **name);
        self.configured
            .iter()
            .filter(|name| !is_here(name))
            .cloned()
            .collect()
    }

    /// The interfaces that the configuration names, else those that lead to peers, to everything
    /// else, or have an address of this node: tunnel packets can arrive on each.
    fn uplinks(
        &mut self,
        own: &Node,
        towards_peers: impl Iterator<Item = u32>,
    ) -> BTreeMap<u32, Uplink> {
        let with_own_address = self
            .addresses
            .iter()
            .filter(|it| own.internal_ips.contains(&it.network.ip()))
            .map(|it| it.index);
        let chosen: BTreeSet<u32> = if self.configured.is_empty() {
            let default_links = self.default_links.iter().copied();
            towards_peers
                .chain(with_own_address)
                .chain(default_links)
                .collect()
        } else {
            let named = |link: &&Link| self.configured.contains(&link.name);
            self.links.iter().filter(named).map(|it| it.index).collect()
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
                "no tunnel packets on this interface: its frames have no Ethernet header"
            );
        }
        self.unusable = unusable;
        uplinks
    }
}
