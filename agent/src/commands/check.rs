//! `ipip-agent --check`: validates configuration and inventory together, and changes nothing.

use crate::{
    config::Config,
    host::{
        facts::NoUplink,
        observe::{self, Observer},
        pod_pool,
    },
    nodes::{FileSource, Refusal, path},
    reconcile::{
        datapath_settings::DatapathSettings,
        mtu::{self, MtuDoesNotFit},
    },
};
use ipip_netlink::{Changes, Netlink};
use std::collections::BTreeSet;

/// The configuration or the inventory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The inventory is refused.
    #[error(transparent)]
    Inventory(#[from] Refusal),
    /// The configured MTU does not fit.
    #[error(transparent)]
    Mtu(#[from] MtuDoesNotFit),
    /// A configured uplink is missing.
    #[error(transparent)]
    NoUplink(#[from] NoUplink),
    /// The pool of pod addresses cannot be used on this host.
    #[error(transparent)]
    Pool(#[from] pod_pool::Error),
    /// The state of this host cannot be read.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
}

/// Validates configuration and inventory, and returns one line for the user.
///
/// # Errors
/// The first fault.
pub fn check(config: &Config) -> Result<String, Error> {
    if let Some(pool) = config.pod_pool() {
        pod_pool::check(&pool)?;
    }
    let inventory = FileSource::new(&config.inventory, &config.node_name).read()?;
    let left_out: Vec<String> = inventory
        .left_out
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect();
    if !left_out.is_empty() {
        let path = config.inventory.display();
        let why = format!("{path}: {}", left_out.join("\n"));
        return Err(Refusal::because(why).into());
    }
    if let Some(own) = inventory.node(&config.node_name) {
        let mut observer = Observer::new(
            Netlink::open()?,
            observe::Settings {
                uplinks: config.uplinks.clone(),
                ..observe::Settings::default()
            },
        );
        let underlays = path::underlays(own, &inventory);
        let facts = observer.facts(own, &underlays, &BTreeSet::new(), Changes::EVERYTHING)?;
        if let Some(missing) = facts.no_uplinks().next() {
            return Err(missing.into());
        }
        mtu::check(&DatapathSettings::from(config), &inventory, &facts)?;
    }
    Ok(format!(
        "the configuration of {} and the inventory {} with {} nodes are valid",
        config.node_name,
        config.inventory.display(),
        inventory.nodes.len()
    ))
}
