//! Offloads of interfaces, so that veths behave like network cards.

use anyhow::{Context, Result};
use ipip_netlink::{Features, Netlink, is_segmentation_offload};

/// Turns off every segmentation offload of an interface, in the calling thread's network namespace: only packets of at
/// most the MTU leave it, as from a card.
///
/// # Errors
/// There is no such interface, or the kernel refused the change.
pub fn segment_in_software(ifname: &str) -> Result<()> {
    let (mut features, index) = of(ifname)?;
    features.turn_off(index, is_segmentation_offload)?;
    Ok(())
}

/// Makes an interface merge the segments that it receives (GRO), in the calling thread's network namespace. A veth
/// merges only if its other end [segments in software](segment_in_software).
///
/// # Errors
/// There is no such interface, or the kernel refused the change.
pub fn merge_on_arrival(ifname: &str) -> Result<()> {
    let (mut features, index) = of(ifname)?;
    Ok(features.set(index, &["rx-gro"], true)?)
}

fn of(ifname: &str) -> Result<(Features, u32)> {
    let link = Netlink::open()?.link(ifname)?;
    let link = link.with_context(|| format!("no interface is called {ifname}"))?;
    let features = Features::open()?.context("the kernel lacks CONFIG_ETHTOOL_NETLINK")?;
    Ok((features, link.index))
}
