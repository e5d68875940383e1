//! `ipip-agent --check`: judges configuration and inventory as a whole, and changes nothing.

use crate::{
    config::Config,
    host::observe::Underlay,
    nodes::{FileSource, Refusal},
    reconcile::desired::{MtuDoesNotFit, check_mtu},
};
use ipip_netlink::{Changes, Netlink};

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The inventory.
    #[error(transparent)]
    Inventory(#[from] Refusal),
    /// The configured MTU.
    #[error(transparent)]
    Mtu(#[from] MtuDoesNotFit),
    /// An interface is not there.
    #[error(
        "uplinks: this host has no interface called {0:?}; remedy: correct `uplinks`, or leave it out to let the routes decide"
    )]
    NoUplink(String),
    /// This host cannot be looked at.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
}

/// What is right, in one line.
pub fn check(config: &Config) -> Result<String, Error> {
    let inventory = FileSource::new(&config.inventory, &config.node_name).read()?;
    if let Some(own) = inventory.node(&config.node_name) {
        let everything = Changes {
            lost: true,
            ..Changes::default()
        };
        let mut underlay = Underlay::new(Netlink::open()?, config);
        let facts = underlay.facts(own, &inventory, everything)?;
        if let Some(missing) = facts.missing_uplinks.first() {
            return Err(Error::NoUplink(missing.clone()));
        }
        check_mtu(config, &inventory, &facts)?;
    }
    Ok(format!(
        "the configuration of {} and the inventory {} with {} nodes are right",
        config.node_name,
        config.inventory.display(),
        inventory.nodes.len()
    ))
}
