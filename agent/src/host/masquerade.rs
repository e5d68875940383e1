//! SNAT: packets from pods of this node leave the cluster with the node's address, and packets from the node
//! enter the tunnel with its InternalIP.
//!
//! The rules are in one nftables table of our own, which one transaction replaces as a whole. Tables of other
//! programs are never touched. NAT evaluates only the first packet of a connection, so a replacement does not
//! disturb established connections.

use crate::host::ipip0;
use ipip_netlink::{Condition, NatRule, NatTable, NewSource, Nftables, if_supported};
use ipnetwork::Ipv4Network;
use std::{iter, net::Ipv4Addr};

/// Name of the table, of the family `ip`.
pub const TABLE: &str = "ipip";

const CHAIN: &str = "postrouting";
const COMMENT: &str = "ipip: SNAT for pod egress and for host-to-peer traffic";

/// The table could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}; remedy: CAP_NET_ADMIN and a kernel with nf_tables and NAT, or `masquerade: false`")]
pub struct Error(#[from] ipip_netlink::Error);

/// The content of the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Masquerade {
    /// Pod CIDRs of this node.
    pub pods: Vec<Ipv4Network>,
    /// Whether packets from pods to outside the cluster get the node's address.
    pub outside: bool,
    /// The node's InternalIPs that are on an interface. Peers accept packets from this node only with these
    /// sources or with pod addresses. A packet that leaves through `ipip0` with another source (a process whose
    /// default route prefers another address, a container that is not a pod) gets the first InternalIP.
    pub own: Vec<Ipv4Addr>,
    /// Port of the `udp` encapsulation. No packet may leave with it as source port: its answers would come to this port
    /// of the node.
    pub udp_port: u16,
}

impl Masquerade {
    /// Replaces the table, or deletes it if it would be empty.
    pub fn apply(&self) -> Result<(), Error> {
        let table = self.table();
        if !table.rules.is_empty() {
            return Ok(Nftables::open()?.replace(&table)?);
        }
        match if_supported(Nftables::open())? {
            // A kernel without netfilter has no table to delete.
            None => Ok(()),
            Some(mut nftables) => Ok(nftables.delete(TABLE)?),
        }
    }

    /// Whether the kernel's table equals the one that [`Self::apply`] writes. Another program may have flushed
    /// or edited it.
    ///
    /// # Errors
    /// The table cannot be read: nothing is known about it.
    pub fn is_in_place(&self) -> Result<bool, Error> {
        let table = self.table();
        let Some(mut nftables) = if_supported(Nftables::open())? else {
            return Ok(table.rules.is_empty());
        };
        Ok(if table.rules.is_empty() {
            !nftables.has(TABLE)?
        } else {
            nftables.holds(&table)?
        })
    }

    fn table(&self) -> NatTable<'_> {
        let mut rules = Vec::new();
        if self.outside {
            rules.extend(self.pods.iter().flat_map(|pods| self.rules_for_pods(*pods)));
        }
        rules.extend(self.own.first().map(|own| self.rule_for_tunnel(*own)));
        NatTable {
            name: TABLE,
            chain: CHAIN,
            comment: COMMENT,
            rules,
        }
    }

    /// One rule for UDP, and one for all other protocols.
    fn rules_for_pods(&self, pods: Ipv4Network) -> [NatRule<'_>; 2] {
        let not_to = self.pods.iter().copied().map(Condition::NotTo);
        let conditions: Vec<_> = iter::once(Condition::From(pods))
            .chain(not_to)
            .chain([Condition::NotThrough(ipip0::NAME)])
            .collect();
        let of_udp = conditions.iter().copied().chain([Condition::Udp]);
        let (first, last) = self.ports();
        let udp = NatRule {
            conditions: of_udp.collect(),
            source: NewSource::OfInterfaceWithPort(first, last),
        };
        let others = NatRule {
            conditions,
            source: NewSource::OfInterface,
        };
        [udp, others]
    }

    /// First and last port of the unprivileged ones on the larger side of [`Self::udp_port`].
    fn ports(&self) -> (u16, u16) {
        const FIRST: u16 = 1024;
        let (below, above) = (
            self.udp_port.saturating_sub(1),
            self.udp_port.saturating_add(1),
        );
        if u16::MAX - above.max(FIRST) >= below.saturating_sub(FIRST) {
            (above.max(FIRST), u16::MAX)
        } else {
            (FIRST, below)
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
