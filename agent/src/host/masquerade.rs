//! Masquerading: packets of this node's pods leave the cluster with the node's address, and packets
//! of the node enter the tunnel with its InternalIP.
//!
//! One nftables table of our own, replaced as a whole in one transaction; rules of others are
//! never touched. NAT looks only at the first packet of a connection, so a replacement disturbs
//! none that is there.

use crate::host::ipip0;
use ipip_netlink::{Condition, NatRule, NatTable, NewSource, Nftables};
use ipnetwork::Ipv4Network;
use nix::errno::Errno;
use std::{iter, net::Ipv4Addr};

/// Name of the table, of the family `ip`.
pub const TABLE: &str = "ipip";

const CHAIN: &str = "postrouting";
const COMMENT: &str = "sources that others can answer and peers accept";

/// Why nftables is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}; remedy: CAP_NET_ADMIN and a kernel with nf_tables and NAT, or `masquerade: false`")]
pub struct Error(#[from] ipip_netlink::Error);

/// What the table holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Masquerade {
    /// Pod CIDRs of this node.
    pub pods: Vec<Ipv4Network>,
    /// Whether pods leave the cluster with the node's address.
    pub outside: bool,
    /// The node's own InternalIPs, as far as they are on an interface: peers take no packet from
    /// this node but from these and its pods. What leaves through `ipip0` with another source (a
    /// process whose default route has another address, a container that is no pod) gets the first.
    pub own: Vec<Ipv4Addr>,
}

impl Masquerade {
    /// Puts the table in place, or removes it where it would be empty.
    pub fn apply(&self) -> Result<(), Error> {
        let table = self.table();
        match (table.rules.is_empty(), Nftables::open()) {
            (false, nftables) => Ok(nftables?.replace(&table)?),
            // A kernel without netfilter has no table of ours.
            (true, Err(error)) if error.errno() == Some(Errno::EPROTONOSUPPORT) => Ok(()),
            (true, nftables) => Ok(nftables?.delete(TABLE)?),
        }
    }

    /// Whether the kernel has the table as [`Self::apply`] makes it, or rightly has none. Someone
    /// may have flushed or edited it.
    pub fn is_in_place(&self) -> bool {
        let table = self.table();
        let Ok(mut nftables) = Nftables::open() else {
            return table.rules.is_empty();
        };
        match table.rules.is_empty() {
            true => nftables.has(TABLE).is_ok_and(|has| !has),
            false => nftables.holds(&table).unwrap_or(false),
        }
    }

    fn table(&self) -> NatTable<'_> {
        let mut rules = Vec::new();
        if self.outside {
            rules.extend(self.pods.iter().map(|pods| self.rule_for_pods(*pods)));
        }
        rules.extend(self.own.first().map(|own| self.rule_for_tunnel(*own)));
        NatTable {
            name: TABLE,
            chain: CHAIN,
            comment: COMMENT,
            rules,
        }
    }

    fn rule_for_pods(&self, pods: Ipv4Network) -> NatRule<'_> {
        let not_to = self.pods.iter().copied().map(Condition::NotTo);
        let conditions = iter::once(Condition::From(pods))
            .chain(not_to)
            .chain([Condition::NotThrough(ipip0::NAME)]);
        NatRule {
            conditions: conditions.collect(),
            source: NewSource::OfInterface,
        }
    }

    fn rule_for_tunnel(&self, own: Ipv4Addr) -> NatRule<'_> {
        let own_addresses = self.own.iter().copied().map(Ipv4Network::from);
        let not_from = self.pods.iter().copied().chain(own_addresses);
        let conditions = not_from
            .map(Condition::NotFrom)
            .chain([Condition::Through(ipip0::NAME)]);
        NatRule {
            conditions: conditions.collect(),
            source: NewSource::Address(own),
        }
    }
}
