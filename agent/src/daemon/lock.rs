//! The lock that allows one agent per state folder: two agents would undo each other's writes.

use ipip_datapath::LOCK_FILE;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Holds the lock until it is dropped. The kernel releases the lock when the process dies.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

/// The lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds it.
    #[error(
        "another ipip-agent runs with the state folder {0}; remedy: stop it, or give each its own stateDir and pinRoot"
    )]
    Held(PathBuf),
    /// The state folder cannot be used.
    #[error(
        "stateDir: cannot use {path}: {source}; remedy: set it to a folder that can be written"
    )]
    StateDir {
        /// The folder or the lock's file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Lock {
    /// Creates the state folder if it is absent, and takes its lock without waiting.
    pub fn take(state_dir: &Path) -> Result<Self, Error> {
        let at = |source| Error::StateDir {
            path: state_dir.to_owned(),
            source,
        };
        fs::create_dir_all(state_dir).map_err(at)?;
        let path = state_dir.join(LOCK_FILE);
        let file = File::create(&path).map_err(at)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Ok(Self { path, _held: held }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::Held(state_dir.to_owned())),
            Err((_, errno)) => Err(at(errno.into())),
        }
    }

    /// Removes the lock's file, and then the state folder if it is empty. Other programs may use the folder too.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        remove_if_empty(self.path.parent().unwrap_or(&self.path))
    }
}

/// Removes a folder if it is empty.
pub fn remove_if_empty(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
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
    fn files_of_other_programs_in_the_state_folder_stay() {
        let folder = tempfile::TempDir::new().unwrap();
        let state_dir = folder.path().join("state");
        Lock::take(&state_dir).unwrap().remove().unwrap();
        assert!(!state_dir.exists());
        let lock = Lock::take(&state_dir).unwrap();
        fs::write(state_dir.join("other"), "").unwrap();
        lock.remove().unwrap();
        let left: Vec<_> = fs::read_dir(&state_dir).unwrap().flatten().collect();
        assert_eq!(left[0].file_name(), "other");
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn the_error_names_a_state_folder_that_cannot_be_created() {
        let error = Lock::take(Path::new("/proc/ipip-state")).unwrap_err();
        assert!(error.to_string().contains("/proc/ipip-state"), "{error}");
    }
}
