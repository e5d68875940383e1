//! Connections that began while the SNAT rules were missing.
//!
//! NAT decides with the first packet of a connection. If another NAT chain exists, the kernel then remembers that
//! there is nothing to translate, and a UDP flow that continues would keep its pod's address for ever.

use ipip_netlink::{Conntrack, Error, Flow, if_supported};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// Deletes the connections from `pods` to outside the cluster that are neither translated nor answered. Their next
/// packet begins a new connection. `is_inside` tells which destinations need no translation.
///
/// # Errors
/// The connections cannot be read or deleted.
pub fn forget(pods: &[Ipv4Network], is_inside: impl Fn(Ipv4Addr) -> bool) -> Result<usize, Error> {
    // A kernel without netfilter tracks no connections.
    let Some(mut table) = if_supported(Conntrack::open())? else {
        return Ok(0);
    };
    // The kernel answers on the socket of the table until its last connection.
    let mut deleting = Conntrack::open()?;
    let mut deleted = Ok(0);
    table.each(|flow| {
        if let Ok(count) = deleted
            && is_stale(&flow, pods, &is_inside)
        {
            deleted = deleting.delete(&flow).map(|()| count + 1);
        }
    })?;
    deleted
}

/// A flow that gets answers works although it is not translated, so it is kept.
fn is_stale(flow: &Flow, pods: &[Ipv4Network], is_inside: impl Fn(Ipv4Addr) -> bool) -> bool {
    pods.iter().any(|it| it.contains(flow.source))
        && flow.reply_destination == flow.source
        && !flow.is_answered
        && !is_inside(flow.reply_source)
}
