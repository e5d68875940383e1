//! A small synchronous netlink client, and network namespaces.
//!
//! [`Netlink`] reads and changes links, addresses, routes, rules and neighbours; [`Events`] reports their
//! changes; [`Nftables`] maintains a NAT table, a table that drops packets, and accept rules, and [`RulesetEvents`]
//! reports changes of rules; [`Conntrack`] reads and deletes connections; [`Fou`] opens foo-over-UDP sockets;
//! [`Features`] changes offloads; [`NetNs`] is a
//! network namespace; [`sysctl`] reads kernel settings.
//!
//! A socket always belongs to the network namespace in which it was opened. Entering a namespace
//! affects a single thread. Only IPv4 is supported.

mod addresses;
mod attributes;
mod conntrack;
mod error;
mod events;
mod features;
mod filters;
mod forward_filter;
mod fou;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod generic;
mod legacy;
mod links;
mod neighbours;
mod netns;
mod nftables;
mod routes;
mod rules;
mod ruleset_events;
mod socket;
mod sysctls;

pub use addresses::Address;
pub use conntrack::{Conntrack, Flow};
pub use error::{Error, Result, if_supported};
pub use events::{Changes, Events};
pub use features::{Features, is_segmentation_offload, is_uncommon_segmentation_offload};
pub use forward_filter::{FilterAction, FilterField, FilterRule, FilterTest, ForwardFilter};
pub use fou::Fou;
pub use legacy::legacy_forward_filter;
pub use links::{DroppedPackets, Link, LinkChange, Veth, is_link_name};
pub use neighbours::Neighbour;
pub use netns::NetNs;
pub use nftables::{
    AcceptChain, Condition, GuardChain, GuardHook, GuardRule, GuardTable, IPTABLES_FORWARD,
    IPTABLES_TABLE, NatRule, NatTable, NewSource, Nftables,
};
pub use routes::{NextHop, Route, RouteKind, Scope};
pub use rules::Rule;
pub use ruleset_events::{RulesetEvents, Watched};
pub use socket::Netlink;
pub use sysctls::{set_sysctl, sysctl};
