//! Masquerading: packets of this node's pods leave the cluster with the node's address.
//!
//! One nftables table of our own, replaced as a whole in one transaction; rules of others are
//! never touched. NAT looks only at the first packet of a connection, so a replacement disturbs
//! none that is there.

use crate::ipip0;
use ipip_netlink::{MasqueradeRule, NatTable, Nftables};
use ipnetwork::Ipv4Network;
use nix::errno::Errno;

/// Name of the table, of the family `ip`.
pub const TABLE: &str = "ipip";

const CHAIN: &str = "postrouting";
const COMMENT: &str = "pods leave the cluster with the node's address";

/// Why nftables is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}; remedy: CAP_NET_ADMIN and a kernel with nf_tables and NAT, or `masquerade: false`")]
pub struct Error(#[from] ipip_netlink::Error);

/// What the table holds: the pods' ranges for which it masquerades, none if there is no table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Masquerade {
    /// Pod CIDRs of this node.
    pub pods: Vec<Ipv4Network>,
}

impl Masquerade {
    /// Puts the table in place, or removes it where there are no pods to masquerade.
    pub fn apply(&self) -> Result<(), Error> {
        match (self.pods.is_empty(), Nftables::open()) {
            (false, nftables) => Ok(nftables?.replace(&self.table())?),
            // A kernel without netfilter has no table of ours.
            (true, Err(error)) if error.errno() == Some(Errno::EPROTONOSUPPORT) => Ok(()),
            (true, nftables) => Ok(nftables?.delete(TABLE)?),
        }
    }

    /// Whether the kernel has the table as [`Self::apply`] makes it, or rightly has none. Someone
    /// may have flushed or edited it.
    pub fn is_in_place(&self) -> bool {
        let Ok(mut nftables) = Nftables::open() else {
            return self.pods.is_empty();
        };
        match self.pods.is_empty() {
            true => nftables.has(TABLE).is_ok_and(|has| !has),
            false => nftables.holds(&self.table()).unwrap_or(false),
        }
    }

    fn table(&self) -> NatTable<'_> {
        let rule = |pods: &Ipv4Network| MasqueradeRule {
            source: *pods,
            except_destinations: &self.pods,
            except_interface: ipip0::NAME,
        };
        NatTable {
            name: TABLE,
            chain: CHAIN,
            comment: COMMENT,
            rules: self.pods.iter().map(rule).collect(),
        }
    }
}
