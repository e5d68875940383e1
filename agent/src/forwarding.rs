//! The host must forward packets between pods and everything else. What it did before is kept
//! in the state folder, so that `uninstall` can give it back.

use ipip_netlink::{set_sysctl, sysctl};
use std::{fs, io, path::Path};

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
    #[error("cannot {action} {path}: {source}; remedy: correct stateDir or its permissions")]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Turns it on.
pub fn ensure(state_dir: &Path) -> Result<(), Error> {
    let before = sysctl(KEY)?;
    if before == "1" {
        return Ok(());
    }
    // First kept, then changed: a crash in between loses nothing.
    let path = state_dir.join(BEFORE);
    fs::write(&path, before).map_err(state("write", &path))?;
    Ok(set_sysctl(KEY, "1")?)
}

/// Gives back what was there before us.
pub fn restore(state_dir: &Path) -> Result<(), Error> {
    let path = state_dir.join(BEFORE);
    let before = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        before => before.map_err(state("read", &path))?,
    };
    set_sysctl(KEY, before.trim())?;
    fs::remove_file(&path).map_err(state("remove", &path))
}

fn state(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::State {
        action,
        path,
        source,
    }
}
