//! Errors of a reconciliation.

use crate::{
    cni_install,
    host::{facts::NoUplink, forward_accept, ipip0, masquerade, pods},
    reconcile::apply,
};

/// This node is not in its desired state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Loading or attaching programs failed.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// Reading or changing links, addresses, routes or neighbours failed.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The tunnel interface could not be created or set up.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Reading or writing maps or host routes failed.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// The nftables table could not be written.
    #[error(transparent)]
    Masquerade(#[from] masquerade::Error),
    /// The accept rules could not be written.
    #[error(transparent)]
    ForwardAccept(#[from] forward_accept::Error),
    /// The host's side of pods could not be read or repaired.
    #[error(transparent)]
    Pods(#[from] pods::Error),
    /// The files for container runtimes could not be installed.
    #[error(transparent)]
    Cni(#[from] cni_install::Error),
    /// A configured uplink is missing.
    #[error(transparent)]
    NoUplink(#[from] NoUplink),
}
