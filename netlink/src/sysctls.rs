//! Kernel settings.

use crate::{Error, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the agent's container has the host's `/proc/sys/net`.
const MOUNTED: &str = "/host/proc/sys";

/// Folders with one entry for each interface, whose names may contain dots.
const BY_INTERFACE: [&str; 4] = [
    "net.ipv4.conf.",
    "net.ipv4.neigh.",
    "net.ipv6.conf.",
    "net.ipv6.neigh.",
];

/// Reads a kernel setting. Settings below `net` are those of the calling thread's network namespace.
/// An interface name is written unchanged, also with dots: `net.ipv4.conf.eth0.100.rp_filter`.
pub fn sysctl(key: &str) -> Result<String> {
    path_of(key)
        .and_then(fs::read_to_string)
        .map(|value| value.trim_end().to_string())
        .map_err(|source| Error::Sysctl {
            attempt: "read",
            key: key.into(),
            source,
        })
}

/// Writes a kernel setting. `key` has the form that [`sysctl`] takes.
pub fn set_sysctl(key: &str, value: &str) -> Result<()> {
    path_of(key)
        .and_then(|path| fs::write(path, value))
        .map_err(|source| Error::Sysctl {
            attempt: "write",
            key: format!("{key}={value}"),
            source,
        })
}

fn path_of(key: &str) -> io::Result<PathBuf> {
    let plain = |key: &str| key.replace('.', "/");
    let path = BY_INTERFACE
        .iter()
        .find_map(|folder| {
            let (interface, setting) = key.strip_prefix(folder)?.rsplit_once('.')?;
            Some(format!("{}{interface}/{setting}", plain(folder)))
        })
        .unwrap_or_else(|| plain(key));
    if key.contains('/') || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a key like net.ipv4.conf.eth0.rp_filter",
        ));
    }
    Ok(root_of(&path).join(path))
}

/// In an unprivileged container `/proc/sys` is read-only, and the manifest mounts the host's [`MOUNTED`] writable.
fn root_of(path: &str) -> &'static Path {
    if path.starts_with("net/") && Path::new(MOUNTED).join("net").exists() {
        return Path::new(MOUNTED);
    }
    Path::new("/proc/sys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_keeps_its_dots() {
        for (key, path) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.all.rp_filter",
                "/proc/sys/net/ipv4/conf/all/rp_filter",
            ),
            (
                "net.ipv6.conf.eth0.100.disable_ipv6",
                "/proc/sys/net/ipv6/conf/eth0.100/disable_ipv6",
            ),
        ] {
            assert_eq!(path_of(key).unwrap(), PathBuf::from(path));
        }
    }

    #[test]
    fn a_key_that_leaves_the_tree_is_refused() {
        for key in [
            "",
            "net..ipv4",
            "net.ipv4.conf....rp_filter",
            "net/../x",
            "net.ipv4.conf./x.y",
        ] {
            assert!(path_of(key).is_err(), "{key}");
        }
    }
}
