//! Errors of a reconciliation.

use crate::{
    cni_install,
    host::{facts::NoUplink, forwarding, ipip0, masquerade},
    reconcile::apply,
};

/// Why this node is not in its desired state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Loading or attaching programs failed.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// Reading or changing links, addresses, routes or neighbours failed.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The tunnel interface.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Maps and host routes.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The nftables table.
    #[error(transparent)]
    Masquerade(#[from] masquerade::Error),
    /// IPv4 forwarding.
    #[error(transparent)]
    Forwarding(#[from] forwarding::Error),
    /// Plugins and network list for container runtimes.
    #[error(transparent)]
    Cni(#[from] cni_install::Error),
    /// A configured uplink is missing.
    #[error(transparent)]
    NoUplink(#[from] NoUplink),
}
