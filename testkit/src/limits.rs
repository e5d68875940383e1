//! Limits of this machine that are too low for a lab beside other work.
//!
//! A raised limit stays raised until the machine boots: a second lab may run when the first one ends.

use anyhow::Result;
use ipip_netlink::{set_sysctl, sysctl};

/// Packets that wait for a CPU in `netif_rx()`, between two veths. While other programs keep the CPU busy, more than
/// the default of 1,000 wait. The kernel drops the excess, which a test would count as a loss in the datapath.
pub const BACKLOG: (&str, u64) = ("net.core.netdev_max_backlog", 100_000);

/// inotify instances of a user. A node of a cluster takes some 30 of the default 128.
pub const INOTIFY: (&str, u64) = ("fs.inotify.max_user_instances", 4096);

/// Raises a limit, unless it is already as high.
pub fn raise((key, wanted): (&str, u64)) -> Result<()> {
    let now: u64 = sysctl(key)?.trim().parse()?;
    if now < wanted {
        set_sysctl(key, &wanted.to_string())?;
    }
    Ok(())
}
