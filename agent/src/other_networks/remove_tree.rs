//! Removes files and folders of another network, and nothing that is mounted there or that a symlink leads to.
//!
//! Networks mount file systems inside their folders: Cilium has a cgroup2 in `/run/cilium`, and a bind mount may show
//! any folder of the host. Each folder is opened by its parent, so a change in the meantime leads nowhere else.

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

/// Removes a file, a symlink, or a folder with its content. Appends an error for each entry that stays. What is gone
/// already is no error. Returns whether `path` is removed.
pub fn remove(path: &Path, errors: &mut Vec<String>) -> bool {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return false;
    };
    match File::open(folder) {
        Ok(folder) => remove_entry(&folder, name, path, errors),
        Err(error) => failed(path, &error, errors),
    }
}

/// Removes the entry `name` of `folder`; `path` is its name in errors.
fn remove_entry(folder: impl AsFd, name: &OsStr, path: &Path, errors: &mut Vec<String>) -> bool {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let kind = match openat2(&folder, name, how) {
        Ok(opened) => {
            if !remove_content(&File::from(opened), path, errors) {
                return false;
            }
            UnlinkatFlags::RemoveDir
        }
        // A file, or a symlink.
        Err(Errno::ENOTDIR | Errno::ELOOP) => UnlinkatFlags::NoRemoveDir,
        Err(errno) => return refused(path, errno, errors),
    };
    match unlinkat(&folder, name, kind) {
        Ok(()) => true,
        Err(errno) => refused(path, errno, errors),
    }
}

/// Removes every entry of a folder. Returns whether it is empty.
fn remove_content(folder: &File, path: &Path, errors: &mut Vec<String>) -> bool {
    // The folder that was opened, whatever its path leads to now.
    let opened = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let entries = match fs::read_dir(opened) {
        Ok(entries) => entries,
        Err(error) => return failed(path, &error, errors),
    };
    let mut is_empty = true;
    for entry in entries {
        is_empty &= match entry {
            Ok(entry) => {
                let name = entry.file_name();
                remove_entry(folder, &name, &path.join(&name), errors)
            }
            Err(error) => failed(path, &error, errors),
        };
    }
    is_empty
}

fn refused(path: &Path, errno: Errno, errors: &mut Vec<String>) -> bool {
    let path_name = path.display();
    match errno {
        Errno::ENOENT => return true,
        // The second is that of a file on which another one is mounted.
        Errno::EXDEV | Errno::EBUSY => errors.push(format!(
            "{path_name} is a mount point and stays: `umount {path_name}`"
        )),
        errno => return failed(path, &errno.into(), errors),
    }
    false
}

fn failed(path: &Path, error: &io::Error, errors: &mut Vec<String>) -> bool {
    errors.push(format!("{}: {error}", path.display()));
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        mount::{MsFlags, mount, umount},
        sched::{CloneFlags, unshare},
    };
    use std::{os::unix::fs::symlink, thread};

    fn bind(from: &Path, to: &Path) {
        let none = None::<&str>;
        mount(Some(from), to, none, MsFlags::MS_BIND, none).unwrap();
    }

    fn mount_tmpfs(on: &Path) {
        let (kind, none) = (Some("tmpfs"), None::<&str>);
        mount(kind, on, kind, MsFlags::empty(), none).unwrap();
    }

    /// Runs `test` in a mount namespace of its own.
    fn with_own_mounts(test: impl FnOnce() + Send) {
        let test = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).unwrap();
            test();
        };
        thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    #[test]
    fn neither_mounts_nor_targets_of_symlinks_are_entered() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        for path in [
            "run/cilium/a/b",
            "run/cilium/cgroupv2",
            "run/cilium/bind",
            "host",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in [
            "run/cilium/a/b/state",
            "run/cilium/file",
            "host/keep",
            "keep",
        ] {
            fs::write(at(path), "").unwrap();
        }
        symlink(at("host"), at("run/cilium/a/link")).unwrap();
        symlink(at("host"), at("run/link")).unwrap();
        with_own_mounts(|| {
            mount_tmpfs(&at("run/cilium/cgroupv2"));
            fs::write(at("run/cilium/cgroupv2/keep"), "").unwrap();
            // Of the same file system, so its device number is the same.
            bind(&at("host"), &at("run/cilium/bind"));
            bind(&at("keep"), &at("run/cilium/file"));
            let mut errors = Vec::new();
            assert!(!remove(&at("run/cilium"), &mut errors));
            assert!(remove(&at("run/link"), &mut errors));
            errors.sort();
            assert_eq!(errors.len(), 3, "{errors:?}");
            for (error, name) in errors.iter().zip(["bind", "cgroupv2", "file"]) {
                let path = at("run/cilium").join(name);
                let expected = format!("is a mount point and stays: `umount {}`", path.display());
                assert!(error.contains(&expected), "{error}");
            }
            for kept in ["run/cilium/cgroupv2/keep", "host/keep", "keep"] {
                assert!(at(kept).exists(), "{kept}");
            }
            assert!(!at("run/cilium/a").exists() && !at("run/link").exists());

            for mounted in ["cgroupv2", "bind", "file"] {
                umount(&at("run/cilium").join(mounted)).unwrap();
            }
            let mut errors = Vec::new();
            assert!(remove(&at("run/cilium"), &mut errors), "{errors:?}");
            assert!(remove(&at("run/cilium"), &mut errors), "{errors:?}");
            assert!(at("host/keep").exists() && at("keep").exists());
        });
    }

    #[test]
    fn a_mount_point_itself_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calico");
        fs::create_dir(&path).unwrap();
        with_own_mounts(|| {
            mount_tmpfs(&path);
            fs::write(path.join("keep"), "").unwrap();
            let mut errors = Vec::new();
            assert!(!remove(&path, &mut errors));
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(path.join("keep").exists());
        });
    }
}
