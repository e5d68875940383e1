//! `ipip-agent --check`: judges configuration and inventory as a whole, and changes nothing.

use crate::{
    config::Config,
    host::{facts::NoUplink, observe::Observer},
    nodes::{FileSource, Refusal, path},
    reconcile::{
        mtu::{self, MtuDoesNotFit},
        settings::Settings,
    },
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
    /// A configured uplink is missing.
    #[error(transparent)]
    NoUplink(#[from] NoUplink),
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
        let mut observer = Observer::new(Netlink::open()?, config.uplinks.clone());
        let underlays = path::underlays(own, &inventory);
        let facts = observer.facts(&own.internal_ips, &underlays, everything)?;
        if let Some(missing) = facts.no_uplinks().next() {
            return Err(missing.into());
        }
        mtu::check(&Settings::from(config), &inventory, &facts)?;
    }
    Ok(format!(
        "the configuration of {} and the inventory {} with {} nodes are right",
        config.node_name,
        config.inventory.display(),
        inventory.nodes.len()
    ))
}
