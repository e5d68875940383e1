//! The MTU of new pods. Pure.

use crate::{
    host::facts::Facts, nodes::inventory::Inventory, reconcile::datapath_settings::DatapathSettings,
};
use ipip_abi::Encapsulation;

/// The configured MTU of pods is larger than the smallest uplink MTU minus the largest overhead.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("mtu: {configured} does not fit: the smallest uplink takes {uplink} bytes and the largest encapsulation in use adds {overhead}; remedy: at most {}, or auto", uplink - overhead)]
pub struct MtuDoesNotFit {
    configured: u16,
    uplink: u16,
    overhead: u16,
}

/// Checks that a configured MTU fits.
pub fn check(
    settings: &DatapathSettings,
    inventory: &Inventory,
    facts: &Facts,
) -> Result<(), MtuDoesNotFit> {
    let (uplink, overhead) = (facts.least_mtu(), largest_overhead(settings, inventory));
    match settings.mtu {
        Some(configured) if configured > uplink.saturating_sub(overhead) => Err(MtuDoesNotFit {
            configured,
            uplink,
            overhead: overhead.min(uplink),
        }),
        _ => Ok(()),
    }
}

/// Returns the MTU of new pods in bytes: the configured one, or the largest that fits if that is smaller.
pub fn of_pods(settings: &DatapathSettings, inventory: &Inventory, facts: &Facts) -> u16 {
    let overhead = largest_overhead(settings, inventory);
    let largest = facts.least_mtu().saturating_sub(overhead);
    settings.mtu.map_or(largest, |mtu| mtu.min(largest))
}

/// The largest overhead in bytes of any path in the cluster, because a pod may send on each path. `ipip` always
/// counts: `direct` does not apply between realms.
fn largest_overhead(settings: &DatapathSettings, inventory: &Inventory) -> u16 {
    let overrides = inventory.nodes.iter().filter_map(|node| node.encapsulation);
    overrides
        .chain([settings.encapsulation, Encapsulation::Ipip])
        .map(Encapsulation::overhead)
        .max()
        .unwrap_or_default()
}
