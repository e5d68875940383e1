//! IPv4 routes of the main table.

use crate::{Netlink, Result, socket::unexpected};
use ipnetwork::Ipv4Network;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteNextHopFlags, RouteScope, RouteType,
    },
};
use nix::errno::Errno;
use std::net::Ipv4Addr;

/// The distance of a destination, or the range in which an address is valid (`rt_scope_t`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scope {
    /// Everywhere (`RT_SCOPE_UNIVERSE`).
    Global,
    /// Inside a site.
    Site,
    /// On the link.
    Link,
    /// This host.
    Host,
    /// A destination that does not exist.
    Nowhere,
    /// A number that the administrator assigned.
    Other(u8),
}

/// What happens to packets for a destination. The agent writes no blackhole routes, but it must see those of
/// other programs, so that it does not replace them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RouteKind {
    /// They are sent to a next hop or onto a link.
    Unicast,
    /// They are dropped, and the sender gets an ICMP error.
    Unreachable,
    /// They are dropped silently.
    Blackhole,
}

/// An IPv4 route of the main table. A route with several next hops is listed once for each of them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Route {
    /// The destination prefix.
    pub destination: Ipv4Network,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Index of the interface.
    pub oif: Option<u32>,
    /// Preferred source address of packets from this host.
    pub source: Option<Ipv4Addr>,
    /// MTU in bytes, if it is not the interface's.
    pub mtu: Option<u32>,
    /// Priority: the lowest number wins; `None` is 0.
    pub metric: Option<u32>,
    /// Origin of the route (`/etc/iproute2/rt_protos`).
    pub protocol: u8,
    /// Distance of the destination: [`Scope::Link`] without a gateway.
    pub scope: Scope,
    /// What happens to the packets.
    pub kind: RouteKind,
    /// The gateway counts as on the link, even if no address of the interface covers it.
    pub onlink: bool,
}

/// The next hop of a packet from this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NextHop {
    /// Index of the interface.
    pub oif: u32,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The source address that the kernel would select.
    pub source: Option<Ipv4Addr>,
    /// Whether the destination is this host.
    pub local: bool,
}

impl Route {
    /// `RTPROT_STATIC`: added by an administrator.
    pub const PROTOCOL_STATIC: u8 = 4;

    /// A unicast route to a destination on the link of the interface `oif`.
    pub fn on_link(destination: Ipv4Network, oif: u32) -> Self {
        Self {
            destination,
            gateway: None,
            oif: Some(oif),
            source: None,
            mtu: None,
            metric: None,
            protocol: Self::PROTOCOL_STATIC,
            scope: Scope::Link,
            kind: RouteKind::Unicast,
            onlink: false,
        }
    }

    /// A unicast route through `gateway` on the interface `oif`.
    pub fn through(destination: Ipv4Network, gateway: Ipv4Addr, oif: u32) -> Self {
        Self {
            gateway: Some(gateway),
            scope: Scope::Global,
            ..Self::on_link(destination, oif)
        }
    }
}

impl Netlink {
    /// Lists the IPv4 routes of the main table whose type is a [`RouteKind`].
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        let table = self.dump("list routes", RouteNetlinkMessage::GetRoute(request))?;
        Ok(table.iter().flat_map(routes).collect())
    }

    /// Adds a route, or replaces the one with the same destination and metric.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        self.change(
            || format!("set route to {}", route.destination),
            RouteNetlinkMessage::NewRoute(request(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Adds a route in front of those with the same destination and metric, so that the kernel uses it. Fails if the
    /// same route exists.
    pub fn prepend_route(&mut self, route: &Route) -> Result<()> {
        self.change(
            || format!("set route to {}", route.destination),
            RouteNetlinkMessage::NewRoute(request(route)),
            NLM_F_CREATE,
        )
    }

    /// Deletes the route that matches all given fields.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.change(
            || format!("delete route to {}", route.destination),
            RouteNetlinkMessage::DelRoute(request(route)),
            0,
        )
    }

    /// Looks up the next hop for `destination`; `None` if it is unreachable.
    pub fn route_to(&mut self, destination: Ipv4Addr) -> Result<Option<NextHop>> {
        self.look_up_route(destination, &[])
    }

    /// Looks up the next hop for a packet with this source, which policy routing (`ip rule add from`) may depend on;
    /// `None` if the destination is unreachable or the source is no address of this host.
    pub fn route_from(
        &mut self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<Option<NextHop>> {
        let source = RouteAttribute::Source(RouteAddress::Inet(source));
        self.look_up_route(destination, &[source])
    }

    /// Looks up the next hop among the routes through the interface with this index. If there is none, the kernel takes the
    /// destination for one on its link.
    pub fn route_over(&mut self, link: u32, destination: Ipv4Addr) -> Result<Option<NextHop>> {
        self.look_up_route(destination, &[RouteAttribute::Oif(link)])
    }

    fn look_up_route(
        &mut self,
        destination: Ipv4Addr,
        conditions: &[RouteAttribute],
    ) -> Result<Option<NextHop>> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        request.header.destination_prefix_length = 32;
        request.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(destination))];
        let is_source = |it: &RouteAttribute| matches!(it, RouteAttribute::Source(_));
        if conditions.iter().any(is_source) {
            request.header.source_prefix_length = 32;
        }
        request.attributes.extend_from_slice(conditions);
        let attempt = || format!("find the route to {destination}");
        let answer = match self.get(attempt, RouteNetlinkMessage::GetRoute(request)) {
            Ok(answer) => answer,
            // In this order: no route, `unreachable`, `prohibit`, `blackhole` or a foreign source.
            Err(error)
                if matches!(
                    error.errno(),
                    Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let RouteNetlinkMessage::NewRoute(message) = &answer else {
            return Err(unexpected(attempt, &answer));
        };
        let hop = hop(&message.attributes);
        Ok(hop.oif.map(|oif| NextHop {
            oif,
            gateway: hop.gateway,
            source: hop.source,
            local: message.header.kind == RouteType::Local,
        }))
    }
}

pub(crate) fn request(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: route.destination.prefix(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: route.protocol.into(),
        scope: RouteScope::from(u8::from(route.scope)),
        kind: match route.kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Unreachable => RouteType::Unreachable,
            RouteKind::Blackhole => RouteType::BlackHole,
        },
        ..RouteHeader::default()
    };
    message.header.flags.set(RouteFlags::Onlink, route.onlink);
    let address = RouteAddress::Inet;
    let attributes = [
        Some(RouteAttribute::Destination(address(
            route.destination.network(),
        ))),
        route.gateway.map(|it| RouteAttribute::Gateway(address(it))),
        route.oif.map(RouteAttribute::Oif),
        route
            .source
            .map(|it| RouteAttribute::PrefSource(address(it))),
        route.metric.map(RouteAttribute::Priority),
        route
            .mtu
            .map(|it| RouteAttribute::Metrics(vec![RouteMetric::Mtu(it)])),
    ];
    message.attributes = attributes.into_iter().flatten().collect();
    message
}

/// The routes in one message of a dump.
pub(crate) fn routes(message: &RouteNetlinkMessage) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return Vec::new();
    };
    let header = &message.header;
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::BlackHole => RouteKind::Blackhole,
        _ => return Vec::new(),
    };
    // Kernels before 4.20 do not filter by table.
    if header.table != RouteHeader::RT_TABLE_MAIN || header.flags.contains(RouteFlags::Cloned) {
        return Vec::new();
    }
    let common = hop(&message.attributes);
    let Ok(destination) = Ipv4Network::new(common.destination, header.destination_prefix_length)
    else {
        return Vec::new();
    };
    let route = Route {
        destination,
        gateway: common.gateway,
        oif: common.oif,
        source: common.source,
        mtu: common.mtu,
        metric: common.metric,
        protocol: header.protocol.into(),
        scope: Scope::from(u8::from(header.scope)),
        kind,
        onlink: header.flags.contains(RouteFlags::Onlink),
    };
    let several = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    match several {
        Some(hops) => hops
            .iter()
            .map(|next| Route {
                gateway: hop(&next.attributes).gateway,
                oif: Some(next.interface_index),
                onlink: next.flags.contains(RouteNextHopFlags::Onlink),
                ..route
            })
            .collect(),
        None => vec![route],
    }
}

struct Hop {
    destination: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    oif: Option<u32>,
    source: Option<Ipv4Addr>,
    mtu: Option<u32>,
    metric: Option<u32>,
}

fn hop(attributes: &[RouteAttribute]) -> Hop {
    let mut hop = Hop {
        destination: Ipv4Addr::UNSPECIFIED,
        gateway: None,
        oif: None,
        source: None,
        mtu: None,
        metric: None,
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(it)) => hop.destination = *it,
            RouteAttribute::Gateway(RouteAddress::Inet(it)) => hop.gateway = Some(*it),
            RouteAttribute::PrefSource(RouteAddress::Inet(it)) => hop.source = Some(*it),
            RouteAttribute::Oif(it) => hop.oif = Some(*it),
            RouteAttribute::Priority(it) => hop.metric = Some(*it),
            RouteAttribute::Metrics(metrics) => {
                hop.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(it) => Some(*it),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    hop
}

impl From<u8> for Scope {
    fn from(scope: u8) -> Self {
        match RouteScope::from(scope) {
            RouteScope::Universe => Self::Global,
            RouteScope::Site => Self::Site,
            RouteScope::Link => Self::Link,
            RouteScope::Host => Self::Host,
            RouteScope::NoWhere => Self::Nowhere,
            _ => Self::Other(scope),
        }
    }
}

impl From<Scope> for u8 {
    fn from(scope: Scope) -> Self {
        u8::from(match scope {
            Scope::Global => RouteScope::Universe,
            Scope::Site => RouteScope::Site,
            Scope::Link => RouteScope::Link,
            Scope::Host => RouteScope::Host,
            Scope::Nowhere => RouteScope::NoWhere,
            Scope::Other(scope) => RouteScope::Other(scope),
        })
    }
}
