//! IPv4 forwarding, without which no packet passes between pods and the rest of the network.
//!
//! The previous value is kept in the state folder, so that `uninstall` can restore it.

use crate::host::state;
use ipip_netlink::{set_sysctl, sysctl};
use std::path::Path;

const KEY: &str = "net.ipv4.ip_forward";
/// File with the previous value; absent if forwarding was on already.
const BEFORE: &str = "ip_forward.before";

/// Forwarding could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Sysctl(#[from] ipip_netlink::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// Turns forwarding on.
pub fn ensure(state_dir: &Path) -> Result<(), Error> {
    let before = sysctl(KEY)?;
    if before == "1" {
        return Ok(());
    }
    // Save before changing: a crash between the two must not lose the previous value.
    let path = state_dir.join(BEFORE);
    state::write(&path, &before)?;
    Ok(set_sysctl(KEY, "1")?)
}

/// Restores the value that forwarding had before the agent changed it.
pub fn restore(state_dir: &Path) -> Result<(), Error> {
    let path = state_dir.join(BEFORE);
    let Some(before) = state::read(&path)? else {
        return Ok(());
    };
    set_sysctl(KEY, before.trim())?;
    Ok(state::remove(&path)?)
}
