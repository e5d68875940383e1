//! The agent's routes in the host's main table, as plain values. Pure.

use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// Protocol number of the agent's routes, as in `ip route show proto 105`. The agent never changes routes of other
/// protocols. The number is free in `/etc/iproute2/rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 105;

/// The next hop of all routes into the tunnel interface, which needs none: the dummy address of RFC 7600. Without it the kernel keeps
/// a neighbour entry for each address to which the host sends, and probes of a thousand peers fill its table (`gc_thresh3`),
/// which all network namespaces share.
pub const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Metric of the route that rejects packets to unused pod addresses of this node: every other route is better.
pub const LAST_RESORT: u32 = 0xf000_0000;

/// Identifies a route in the main table, which holds at most one route for each key.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HostRouteKey {
    /// Prefix of the destinations.
    pub destination: Ipv4Network,
    /// Priority; the lowest number wins.
    pub metric: u32,
}

/// The target of one of the agent's routes: the treatment of packets that match its [`HostRouteKey`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HostRoute {
    /// Send them through the tunnel interface, by [`NEXT_HOP`].
    Interface {
        /// Index of the interface.
        index: u32,
        /// Source address that the host prefers for its own packets.
        source: Option<Ipv4Addr>,
        /// MTU in bytes; `None` means the MTU of the interface.
        mtu: Option<u32>,
    },
    /// Answer with an ICMP error.
    Unreachable,
}

/// A route of the main table that another program wrote.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ForeignRoute {
    /// Its protocol, as in `/etc/iproute2/rt_protos`.
    pub protocol: u8,
    /// Index of its interface.
    pub oif: Option<u32>,
    /// Its next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the kernel finds it before the agent's route with the same key, or there is no such route.
    pub is_first: bool,
}

impl HostRouteKey {
    /// The key of the best route to `destination`: its metric is 0.
    pub fn best(destination: Ipv4Network) -> Self {
        Self {
            destination,
            metric: 0,
        }
    }

    /// The key of the route to `destination` that applies only if there is no other.
    pub fn last_resort(destination: Ipv4Network) -> Self {
        Self {
            destination,
            metric: LAST_RESORT,
        }
    }
}
