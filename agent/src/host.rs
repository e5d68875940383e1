//! The host apart from the datapath: the state that the agent observes, and the settings that it makes.
//!
//! [`observe`] reads links, addresses, routes and neighbours, and returns them as [`facts`]. Each other module owns
//! one setting of the host: an idempotent `ensure` or `apply` sets it, and `remove` or `restore` undoes that for
//! `uninstall`. Only [`observe`] uses other folders, so callers pass plain values to the rest. For another
//! host setting, add a module here and call it from `reconcile::host_setup`.

use ipip_netlink::Watched;

pub mod facts;
pub mod firewall;
pub mod forward_accept;
pub mod fou;
pub mod guard;
pub mod ipip0;
pub mod lan_probe;
pub mod masquerade;
pub mod network_managers;
pub mod observe;
pub mod pod_pool;
pub mod pods;
pub mod resolvers;
pub mod stale_flows;
pub mod sysctls;

mod best_route;
mod state;

/// The rules of nftables whose change needs a reconciliation.
pub const WATCHED_RULES: &[Watched] = &[
    Watched {
        table: masquerade::TABLE,
        chain: None,
    },
    Watched {
        table: guard::TABLE,
        chain: None,
    },
    Watched {
        table: ipip_netlink::IPTABLES_TABLE,
        chain: Some(ipip_netlink::IPTABLES_FORWARD),
    },
    Watched {
        table: ipip_netlink::IPTABLES_TABLE,
        chain: Some(forward_accept::CHAIN),
    },
];
