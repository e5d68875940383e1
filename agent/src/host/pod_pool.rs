//! Checks that the pool of pod addresses holds no address that this host needs for the way to other hosts.

use crate::pod_pool::PodPool;
use ipip_netlink::Netlink;
use ipnetwork::Ipv4Network;
use std::{collections::BTreeSet, env, net::Ipv4Addr};

/// The pool cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It holds an address that this host uses.
    #[error(
        "clusterPodCIDRs: {network} holds {address}, {what}; remedy: choose networks outside of the nodes' networks and of the Service range"
    )]
    Holds {
        /// The network of the pool.
        network: Ipv4Network,
        /// The address.
        address: Ipv4Addr,
        /// Where the address is used.
        what: &'static str,
    },
    /// The host's routes or addresses cannot be read.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
}

/// Checks that `pool` holds no gateway of this host, no address of an interface of a default route, and in a pod not
/// the address of the Service `kubernetes`, the first one of the Service range. Other interfaces may be leftovers of
/// another network with the same pod addresses.
///
/// # Errors
/// The first such address.
pub fn check(pool: &PodPool) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let routes = netlink.routes()?;
    let defaults = routes.iter().filter(|it| it.destination.prefix() == 0);
    let links: BTreeSet<u32> = defaults.clone().filter_map(|it| it.oif).collect();
    let gateways = defaults.filter_map(|it| it.gateway);
    let addresses = netlink.addresses()?;
    let addresses = addresses.iter().filter(|it| links.contains(&it.index));
    let service = env::var("KUBERNETES_SERVICE_HOST").unwrap_or_default();
    let used = gateways
        .map(|it| (it, "a gateway of this node"))
        .chain(addresses.map(|it| (it.network.ip(), "an address of this node")))
        .chain(
            service
                .parse()
                .map(|it| (it, "the address of the Service kubernetes")),
        );
    check_against(pool, used)
}

fn check_against(
    pool: &PodPool,
    used: impl IntoIterator<Item = (Ipv4Addr, &'static str)>,
) -> Result<(), Error> {
    for (address, what) in used {
        if let Some(&network) = pool.overlapping(&address.into()) {
            return Err(Error::Holds {
                network,
                address,
                what,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_address_in_a_pool_is_named_with_the_network_and_the_remedy() {
        let networks = ["10.42.0.0/16", "10.96.0.0/16"].map(|it| it.parse().unwrap());
        let pool = PodPool::new(&networks, 24).unwrap();
        let used = |last: [u8; 4]| {
            [
                ([10, 0, 0, 1].into(), "a gateway"),
                (last.into(), "the Service"),
            ]
        };
        assert!(check_against(&pool, used([10, 97, 0, 1])).is_ok());
        let refused = check_against(&pool, used([10, 96, 0, 1]))
            .unwrap_err()
            .to_string();
        let expected = "clusterPodCIDRs: 10.96.0.0/16 holds 10.96.0.1, the Service; remedy: ";
        assert!(refused.starts_with(expected), "{refused}");
    }
}
