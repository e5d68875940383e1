//! Network namespaces.

use crate::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::fstat,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    os::unix::fs::OpenOptionsExt,
    panic,
    path::{Path, PathBuf},
    thread,
};

/// The folder in which `ip netns` mounts namespaces.
const NAMED: &str = "/run/netns";
/// The namespace of the calling thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(OWN)
    }

    /// Opens the namespace at `path`: a bind mount, or `/proc/PID/ns/net`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(at("open", &path))?;
        let filesystem = fstatfs(&file).map_err(at("open", &path))?;
        if filesystem.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace { path });
        }
        Ok(Self { file, path })
    }

    /// Creates a namespace that `ip netns` lists as `name`. Its only interface is `lo`, which is down.
    pub fn create(name: &str) -> Result<Self> {
        let path = path_of(name)?;
        share_folder().map_err(at("create", &path))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(at("create", &path))?;
        let created = in_thread(|| -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(
                Some(OWN),
                &path,
                Some("none"),
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            Ok(())
        });
        let opened = match created.and_then(|created| created) {
            Ok(()) => Self::open(&path),
            Err(source) => Err(at("create", &path)(source)),
        };
        if opened.is_err() {
            // The first error is more informative than one of the removal.
            let _ = Self::delete(name);
        }
        opened
    }

    /// Deletes the name `name` of a namespace, as `ip netns delete` does. The namespace continues to
    /// exist while a process or a descriptor uses it.
    pub fn delete(name: &str) -> Result<()> {
        let path = path_of(name)?;
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: the file exists, but nothing is mounted on it.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(at("delete", &path)(errno)),
        }
        fs::remove_file(&path).map_err(at("delete", &path))
    }

    /// The path from which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are the same namespace.
    pub fn is_same_as(&self, other: &Self) -> Result<bool> {
        let identity = |ns: &Self| {
            fstat(&ns.file)
                .map(|stat| (stat.st_dev, stat.st_ino))
                .map_err(at("compare", &ns.path))
        };
        Ok(identity(self)? == identity(other)?)
    }

    /// Runs `f` on a new thread that has entered the namespace, and waits for it. Processes that `f`
    /// starts and sockets that it opens stay in the namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        in_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        })
        .and_then(|result: io::Result<T>| result)
        .map_err(at("enter", &self.path))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `f` on a new thread, so that a change of namespace ends with that thread. A panic in `f`
/// continues in the caller.
fn in_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, f)?;
        Ok(thread
            .join()
            .unwrap_or_else(|payload| panic::resume_unwind(payload)))
    })
}

fn path_of(name: &str) -> Result<PathBuf> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Error::NamespaceName { name: name.into() });
    }
    Ok(Path::new(NAMED).join(name))
}

/// Makes the folder a shared mount, as `ip netns` does: a deletion then also unmounts the namespace
/// in the mount namespaces of other processes.
fn share_folder() -> io::Result<()> {
    fs::create_dir_all(NAMED)?;
    // Without the lock, two concurrent calls would mount the folder over itself twice.
    let _lock = Flock::lock(File::open(NAMED)?, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    let share = || {
        mount(
            None::<&str>,
            NAMED,
            Some("none"),
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            None::<&str>,
        )
    };
    if share() == Err(Errno::EINVAL) {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(NAMED), NAMED, Some("none"), bind, None::<&str>)?;
        share()?;
    }
    Ok(())
}

fn at<E: Into<io::Error>>(attempt: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |source| Error::Namespace {
        attempt,
        path: path.into(),
        source: source.into(),
    }
}
