//! Rules that keep other machines, and processes of this host, from using this node's identity in the overlay.
//!
//! The programs guard uplinks and pods. Everything else that the host forwards passes here: packets of a second network
//! card, of a bridge with containers that are no pods, or of a VPN. Without these rules such a packet would reach local
//! pods, and through `ipip0` all other nodes, with this node's address as its source.
//!
//! Peers accept tunnel packets by their outer source, which is this node's for all that it sends or forwards. Our own
//! tunnel packets never pass netfilter, so a datagram to the tunnel's port that does is somebody else's.

use crate::{host::ipip0, other_networks::table::NETWORKS};
use ipip_abi::wire::PROTO_IPIP;
use ipip_netlink::{
    Condition, GuardChain, GuardHook, GuardRule, GuardTable, Nftables, if_supported,
};
use std::collections::BTreeSet;

/// Name of the table, of the family `ip`.
pub const TABLE: &str = "ipip-guard";

/// The host sides of all pods.
const PODS: &str = "pod*";

/// The table could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; until then the host forwards packets of machines beside it into the pod network; remedy: CAP_NET_ADMIN and \
     a kernel with nf_tables, connection tracking and the expression fib (module nft_fib_ipv4)"
)]
pub struct Error(#[from] ipip_netlink::Error);

/// The content of the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Guard {
    /// Names of the uplinks.
    pub uplinks: BTreeSet<String>,
    /// Names of interfaces whose machines may reach pods and remote nodes by routing; a name may end with `*`.
    pub routed: Vec<String>,
    /// UDP port of the tunnel.
    pub udp_port: u16,
}

impl Guard {
    /// Replaces the table.
    pub fn apply(&self) -> Result<(), Error> {
        let routed = self.routed();
        Ok(Nftables::open()?.replace_guard(&self.table(&routed))?)
    }

    /// Whether the kernel's table equals the one that [`Self::apply`] writes.
    ///
    /// # Errors
    /// The table cannot be read: nothing is known about it.
    pub fn is_in_place(&self) -> Result<bool, Error> {
        let routed = self.routed();
        Ok(Nftables::open()?.holds_guard(&self.table(&routed))?)
    }

    /// The table, which lets packets of the interfaces `routed` pass.
    fn table<'a>(&'a self, routed: &'a BTreeSet<String>) -> GuardTable<'a> {
        GuardTable {
            name: TABLE,
            chains: vec![
                self.prerouting(routed),
                forward(&self.uplinks, routed),
                self.postrouting(),
            ],
        }
    }

    /// Sources that belong to pods or peers, from elsewhere.
    fn prerouting<'a>(&'a self, routed: &'a BTreeSet<String>) -> GuardChain<'a> {
        let others = self.uplinks.iter().chain(routed).map(String::as_str);
        let trusted = [PODS, ipip0::NAME].into_iter().chain(others);
        let accepted = trusted.map(|it| accept([Condition::Into(it)]));
        let behind = [ipip0::NAME, PODS].map(|it| drop_if([Condition::SourceBehind(it)]));
        GuardChain {
            hook: GuardHook::Prerouting,
            comment: "ipip: addresses of pods and remote nodes come only from them",
            rules: accepted.chain(behind).collect(),
        }
    }

    /// Datagrams to the tunnel's port, of this host and of others.
    fn postrouting(&self) -> GuardChain<'_> {
        let to_tunnel =
            |uplink| drop_if([Condition::Through(uplink), Condition::UdpTo(self.udp_port)]);
        GuardChain {
            hook: GuardHook::Postrouting,
            comment: "ipip: only the datapath sends to the tunnel's UDP port",
            rules: self.uplinks.iter().map(|it| to_tunnel(it)).collect(),
        }
    }

    /// The interfaces of the operator, and those of other pod networks, with which a node may change from one network to
    /// the other under traffic.
    fn routed(&self) -> BTreeSet<String> {
        let of_networks = NETWORKS.iter().flat_map(|network| {
            let links = [network.links, network.shared_links, network.pod_links];
            links.into_iter().flatten()
        });
        // A rule cannot tell the digits that `#` stands for from other characters.
        let names = of_networks.map(|it| it.replace('#', "*"));
        self.routed.iter().cloned().chain(names).collect()
    }
}

/// Packets to pods and remote nodes that no Service leads there, and tunnel packets of others.
fn forward<'a>(uplinks: &'a BTreeSet<String>, routed: &'a BTreeSet<String>) -> GuardChain<'a> {
    let tunnels = uplinks
        .iter()
        .map(|it| drop_if([Condition::Through(it), Condition::Protocol(PROTO_IPIP)]));
    let accepted = [
        Condition::Into(PODS),
        Condition::Into(ipip0::NAME),
        Condition::Translated,
        Condition::Replies,
    ];
    let routed = routed.iter().map(|it| Condition::Into(it));
    let accepted = accepted.into_iter().chain(routed).map(|it| accept([it]));
    let dropped = [ipip0::NAME, PODS].map(|it| drop_if([Condition::Through(it)]));
    GuardChain {
        hook: GuardHook::Forward,
        comment: "ipip: other machines reach pods and remote nodes by Services alone",
        rules: tunnels.chain(accepted).chain(dropped).collect(),
    }
}

/// Deletes the table.
pub fn remove() -> Result<(), Error> {
    match if_supported(Nftables::open())? {
        // A kernel without netfilter has no table to delete.
        None => Ok(()),
        Some(mut nftables) => Ok(nftables.delete(TABLE)?),
    }
}

fn accept<const N: usize>(conditions: [Condition<'_>; N]) -> GuardRule<'_> {
    GuardRule {
        conditions: conditions.into(),
        drops: false,
    }
}

fn drop_if<const N: usize>(conditions: [Condition<'_>; N]) -> GuardRule<'_> {
    GuardRule {
        conditions: conditions.into(),
        drops: true,
    }
}
