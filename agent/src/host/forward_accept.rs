//! Accept rules in the chain `FORWARD` of iptables.
//!
//! Docker and ufw set the policy of `FORWARD` to DROP, which would stop Services, hostPorts and Internet access of
//! pods. A drop of one table cannot be overridden by an accept of another, so the rules stand in iptables' own table
//! `ip filter`, in a form that `iptables` prints, and only if iptables-nft has created the chain.
//!
//! The jump is the last rule, as flannel's is; only a final rule that drops everything comes after it. So rules of an
//! operator that drop some packets of pods keep their effect.

use crate::host::ipip0;
use ipip_netlink::{AcceptChain, Condition, Nftables, if_supported};
use ipnetwork::Ipv4Network;

/// Name of the chain with the rules.
pub const CHAIN: &str = "IPIP-FORWARD";

/// The rules could not be written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}; remedy: load the kernel modules nft_compat and xt_conntrack, or `forwardAccept: false` and accept rules of your own"
)]
pub struct Error(#[from] ipip_netlink::Error);

/// Accepts packets of `pods`, the pod CIDRs of this node, and connections through `ipip0` that were translated on the
/// way in (a NodePort whose pod is on another node). Returns whether anything had to be changed.
pub fn ensure(pods: &[Ipv4Network]) -> Result<bool, Error> {
    let Some(mut nftables) = if_supported(Nftables::open())? else {
        return Ok(false);
    };
    Ok(nftables.ensure_accepts(&chain(pods))?)
}

/// Removes the rules.
pub fn remove() -> Result<(), Error> {
    match if_supported(Nftables::open())? {
        Some(mut nftables) => Ok(nftables.delete_accepts(&chain(&[]))?),
        None => Ok(()),
    }
}

fn chain(pods: &[Ipv4Network]) -> AcceptChain<'static> {
    let of_pods = pods
        .iter()
        .flat_map(|it| [vec![Condition::From(*it)], vec![Condition::To(*it)]]);
    let of_ipip0 = [
        Condition::Through(ipip0::NAME),
        Condition::Into(ipip0::NAME),
    ];
    let of_ipip0 = of_ipip0.map(|it| vec![it, Condition::Translated]);
    AcceptChain {
        name: CHAIN,
        rules: of_pods.chain(of_ipip0).collect(),
    }
}
