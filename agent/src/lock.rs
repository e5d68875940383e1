//! One agent a node: two would undo each other's writes.

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Held as long as this lives; the kernel releases it when the process dies, however it does.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has it.
    #[error(
        "another ipip-agent runs with the state folder {0}; remedy: stop it, or give each its own stateDir and pinRoot"
    )]
    Held(PathBuf),
    /// The state folder cannot be used.
    #[error(
        "stateDir: cannot use {path}: {source}; remedy: set it to a folder that can be written"
    )]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Lock {
    /// Makes the state folder if it is absent, and takes its lock without waiting.
    pub fn take(state_dir: &Path) -> Result<Self, Error> {
        let at = |source| Error::StateDir {
            path: state_dir.to_owned(),
            source,
        };
        fs::create_dir_all(state_dir).map_err(at)?;
        let file = File::create(state_dir.join("agent.lock")).map_err(at)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::Held(state_dir.to_owned())),
            Err((_, errno)) => Err(at(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_until_the_first_has_ended() {
        let folder = tempfile::TempDir::new().unwrap();
        let state_dir = folder.path().join("state");
        let first = Lock::take(&state_dir).unwrap();
        assert!(matches!(Lock::take(&state_dir), Err(Error::Held(_))));
        drop(first);
        Lock::take(&state_dir).unwrap();
    }

    #[test]
    fn a_state_folder_that_cannot_be_made_is_named() {
        let error = Lock::take(Path::new("/proc/ipip-state")).unwrap_err();
        assert!(error.to_string().contains("/proc/ipip-state"), "{error}");
    }
}
