//! A small synchronous rtnetlink client, nftables' share of masquerading, sockets of
//! foo-over-UDP, and network namespaces.
//!
//! [`Netlink`] asks and changes, [`Events`] tells that something changed, [`Nftables`] keeps a
//! table, [`Fou`] opens sockets, [`NetNs`] is a namespace.
//! A socket belongs for ever to the network namespace in which it was opened; a namespace belongs
//! to threads. Only IPv4 is handled.

mod addresses;
mod error;
mod events;
mod fou;
mod links;
mod neighbours;
mod netns;
mod nftables;
mod offloads;
mod routes;
mod socket;
mod sysctls;

pub use addresses::Address;
pub use error::{Error, Result};
pub use events::{Changes, Events};
pub use fou::Fou;
pub use links::{Link, LinkChange, Veth, is_link_name};
pub use neighbours::Neighbour;
pub use netns::NetNs;
pub use nftables::{Condition, NatRule, NatTable, NewSource, Nftables};
pub use offloads::{Offload, set_offload};
pub use routes::{NextHop, Route, RouteKind, Scope};
pub use socket::Netlink;
pub use sysctls::{set_sysctl, sysctl};
