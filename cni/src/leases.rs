//! The leases of host-local. GC reads them, because host-local (1.9.1) does not implement GC.
//!
//! Each address has one file, `DATA_DIR/NETWORK/ADDRESS`: the container ID on the first line, the
//! interface on the second. Leases are released by host-local, with one exception: a host-local
//! killed mid-write leaves an empty lease that no DEL can match. GC removes it under host-local's
//! lock.

use crate::{attachment::Attachment, conf::Conf, error::Error};
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

const PLUGIN: &str = "host-local";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
const LOCK: &str = "lock";

/// The leases of one network.
pub struct Leases(PathBuf);

impl Leases {
    /// The leases of the network, if its IPAM plugin is host-local.
    pub fn of(conf: &Conf) -> Option<Self> {
        if conf.ipam != PLUGIN {
            return None;
        }
        let folder = conf.ipam_data_dir.as_deref();
        let folder = folder.unwrap_or(Path::new(DEFAULT_DATA_DIR));
        Some(Self(folder.join(&conf.network.0)))
    }

    /// The attachments that hold an address.
    pub fn holders(&self) -> Result<Vec<Attachment>, Error> {
        let leases = self.files()?.into_iter();
        Ok(leases.filter_map(|(_, text)| holder(&text)).collect())
    }

    /// Fails if the lease of `address` still belongs to this attachment: host-local reports no error
    /// if it cannot remove a lease.
    pub fn expect_returned(&self, address: Ipv4Addr, of: &Attachment) -> Result<(), Error> {
        let path = self.0.join(address.to_string());
        match fs::read_to_string(&path) {
            Ok(text) if holder(&text).as_ref() == Some(of) => Err(Error::LeaseKept(path)),
            _ => Ok(()),
        }
    }

    /// Removes leases that name no container.
    pub fn remove_half_written(&self) -> Result<(), Error> {
        let is_half = |(_, text): &(PathBuf, String)| text.trim().is_empty();
        if !self.files()?.iter().any(is_half) {
            return Ok(());
        }
        let path = self.0.join(LOCK);
        let lock = File::open(&path).map_err(at(&path))?;
        // While this lock is held, host-local is not writing a lease.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| at(&path)(errno.into()))?;
        for (path, _) in self.files()?.into_iter().filter(is_half) {
            fs::remove_file(&path).map_err(at(&path))?;
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<(PathBuf, String)>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&self.0))?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at(&self.0))?;
            if entry
                .file_name()
                .to_string_lossy()
                .parse::<IpAddr>()
                .is_err()
            {
                continue;
            }
            match fs::read(entry.path()) {
                Ok(bytes) => {
                    files.push((entry.path(), String::from_utf8_lossy(&bytes).into_owned()))
                }
                // The lease was released in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&entry.path())(error)),
            }
        }
        Ok(files)
    }
}

fn holder(text: &str) -> Option<Attachment> {
    let mut lines = text.lines().map(str::trim);
    Some(Attachment {
        container_id: lines.next().filter(|id| !id.is_empty())?.into(),
        ifname: lines.next()?.into(),
    })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Lease {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_are_read_and_only_empty_ones_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("10.42.1.2", "a1\r\neth0"),
            ("10.42.1.3", ""),
            ("last_reserved_ip.0", "10.42.1.3"),
            ("lock", ""),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let leases = Leases(folder.path().into());
        let expected = Attachment {
            container_id: "a1".into(),
            ifname: "eth0".into(),
        };
        assert_eq!(leases.holders().unwrap(), [expected]);
        leases.remove_half_written().unwrap();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["10.42.1.2", "last_reserved_ip.0", "lock"]);
    }

    #[test]
    fn a_network_without_leases_has_none() {
        let leases = Leases("/nonexistent/ipip".into());
        assert_eq!(leases.holders().unwrap(), []);
        leases.remove_half_written().unwrap();
    }
}
