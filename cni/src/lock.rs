//! The lock of an attachment: ADD and DEL of one attachment exclude each other, and GC excludes all.
//!
//! One file holds all locks (open file description locks): an attachment locks one byte, GC locks
//! the whole file. The kernel releases a lock when its last holder exits, also if it is killed. A
//! delegated IPAM plugin inherits the lock. If ADD is killed, a plugin that is still running and
//! about to allocate an address therefore delays the following DEL, which then releases the address.

use crate::error::Error;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc::{self, off_t},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

const FILE: &str = "cni.lock";

/// A lock. It is held until this value is dropped and every child process that inherited the
/// descriptor has exited.
pub struct Lock(File);

impl Lock {
    /// Waits for the lock of one attachment to the node whose pins are below `pin_root`. `folder` holds
    /// the lock file.
    pub fn of_attachment(folder: &Path, pin_root: &Path, host_ifname: &str) -> Result<Self, Error> {
        let hash = Sha256::new()
            .chain_update(pin_root.as_os_str().as_encoded_bytes())
            .chain_update([0])
            .chain_update(host_ifname)
            .finalize();
        let mut byte = [0; 8];
        byte.copy_from_slice(&hash[..8]);
        // Offsets are signed.
        let byte = off_t::from_le_bytes(byte) & off_t::MAX;
        let lock = Self::take(folder, byte.min(off_t::MAX - 1), 1)?;
        let inherited = FcntlArg::F_SETFD(FdFlag::empty());
        fcntl(&lock.0, inherited).map_err(|errno| failed(folder.join(FILE))(errno.into()))?;
        Ok(lock)
    }

    /// Waits for the lock of all attachments, for GC.
    pub fn of_all(folder: &Path) -> Result<Self, Error> {
        Self::take(folder, 0, 0)
    }

    fn take(folder: &Path, start: off_t, len: off_t) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).and_then(|()| open())
            }
            opened => opened,
        }
        .map_err(failed(&path))?;
        let range = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: len,
            l_pid: 0,
        };
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                Ok(_) => return Ok(Self(file)),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(failed(&path)(errno.into())),
            }
        }
    }
}

fn failed(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Lock { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread, time::Duration};

    #[test]
    fn one_attachment_excludes_itself_and_garbage_collection_but_no_other() {
        let folder = &tempfile::tempdir().unwrap();
        let of = |name: &str| Lock::of_attachment(folder.path(), Path::new("/pins"), name).unwrap();
        let held = of("pod1");
        let other = of("pod2");
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for all in [false, true] {
                let sender = sender.clone();
                let of = &of;
                scope.spawn(move || {
                    let lock = if all {
                        Lock::of_all(folder.path()).unwrap()
                    } else {
                        of("pod1")
                    };
                    drop(lock);
                    sender.send(all).unwrap();
                });
            }
            let early = receiver.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "{early:?} did not wait");
            drop(held);
            let first = receiver.recv_timeout(Duration::from_secs(5)).unwrap();
            assert!(!first, "GC waits for pod2 as well");
            drop(other);
            receiver.recv_timeout(Duration::from_secs(5)).unwrap();
        });
    }

    #[test]
    fn a_path_that_is_no_folder_is_named_in_the_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Lock::of_all(file.path()).err().unwrap().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
