//! The host must forward packets between pods and everything else. What it did before is kept
//! in the state folder, so that `uninstall` can give it back.

use crate::host::state;
use ipip_netlink::{set_sysctl, sysctl};
use std::path::Path;

const KEY: &str = "net.ipv4.ip_forward";
/// Holds the value that was there before us; absent if it was right already.
const BEFORE: &str = "ip_forward.before";

/// Why forwarding could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Sysctl(#[from] ipip_netlink::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// Turns it on.
pub fn ensure(state_dir: &Path) -> Result<(), Error> {
    let before = sysctl(KEY)?;
    if before == "1" {
        return Ok(());
    }
    // First kept, then changed: a crash in between loses nothing.
    let path = state_dir.join(BEFORE);
    state::write(&path, &before)?;
    Ok(set_sysctl(KEY, "1")?)
}

/// Gives back what was there before us.
pub fn restore(state_dir: &Path) -> Result<(), Error> {
    let path = state_dir.join(BEFORE);
    let Some(before) = state::read(&path)? else {
        return Ok(());
    };
    set_sysctl(KEY, before.trim())?;
    Ok(state::remove(&path)?)
}
