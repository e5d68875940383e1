//! The leases of host-local. GC reads them, because host-local (1.9.1) does not implement GC.
//!
//! Each address has one file, `DATA_DIR/NETWORK/ADDRESS`: the container ID on the first line, the
//! interface on the second. Leases are released by host-local, with one exception: a host-local
//! killed mid-write leaves an empty lease that no DEL can match. GC removes it under host-local's
//! lock.
//!
//! The agent's configuration keeps leases in `/run`. Before, they were in host-local's default folder, and pods may
//! still hold them: they are moved. Some runtimes (CRI-O, Multus) delete a pod with the configuration of its ADD, so a
//! lease may be in a folder that the configuration does not name.

use crate::{
    attachment::{Attachment, Network},
    conf::Conf,
    error::Error,
};
use ipip_datapath::LEASES_DIR;
use ipip_netlink::Netlink;
use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
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
        Some(Self::in_folder(folder, &conf.network))
    }

    /// The leases of the network in the folders that the agent's configurations name now or named before, apart from
    /// the folder of this configuration. Each comes with the folder, which is the plugin's `dataDir`.
    pub fn elsewhere(conf: &Conf) -> Vec<(&'static Path, Self)> {
        let Some(own) = Self::of(conf) else {
            return Vec::new();
        };
        [DEFAULT_DATA_DIR, LEASES_DIR]
            .into_iter()
            .map(|folder| (Path::new(folder), Self::in_folder(folder, &conf.network)))
            .filter(|(_, leases)| leases.0 != own.0)
            .collect()
    }

    fn in_folder(folder: impl AsRef<Path>, network: &Network) -> Self {
        Self(folder.as_ref().join(&network.0))
    }

    /// Moves the leases of existing pods from host-local's default folder, if the agent's configuration is used.
    /// Leases without a pod, as a reboot leaves them, are dropped.
    pub fn adopt(conf: &Conf) -> Result<(), Error> {
        let Some(leases) = Self::of(conf) else {
            return Ok(());
        };
        let earlier = Self::in_folder(DEFAULT_DATA_DIR, &conf.network);
        if conf.ipam_data_dir.as_deref() != Some(Path::new(LEASES_DIR)) || !earlier.0.exists() {
            return Ok(());
        }
        let links = Netlink::open()?.links()?;
        let links = links.into_iter().map(|link| link.name).collect();
        leases.take(&earlier, &conf.network, &links)
    }

    /// Moves leases whose interface is in `links`, and removes the other folder.
    fn take(&self, from: &Self, network: &Network, links: &HashSet<String>) -> Result<(), Error> {
        let lock = from.0.join(LOCK);
        let lock = match File::open(&lock) {
            // Without a lock there is no lease: host-local makes it first. Or another call was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            lock => lock.map_err(at(&from.0))?,
        };
        // While this lock is held, host-local is not writing a lease there.
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| at(&from.0)(errno.into()))?;
        fs::create_dir_all(&self.0).map_err(at(&self.0))?;
        for (path, text) in from.files()? {
            let is_used = holder(&text).is_some_and(|it| links.contains(&network.host_ifname(&it)));
            if is_used && let Some(name) = path.file_name() {
                let path = self.0.join(name);
                match File::create_new(&path) {
                    // The address was assigned here already.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    file => file.and_then(|mut file| file.write_all(text.as_bytes())),
                }
                .map_err(at(&path))?;
            }
        }
        match fs::remove_dir_all(&from.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&from.0)(error)),
            _ => Ok(()),
        }
    }

    /// The attachments that hold an address.
    pub fn holders(&self) -> Result<Vec<Attachment>, Error> {
        let leases = self.files()?.into_iter();
        Ok(leases.filter_map(|(_, text)| holder(&text)).collect())
    }

    /// Fails if an attachment that `is_stale` holds an address.
    pub fn expect_none_of(&self, is_stale: impl Fn(&Attachment) -> bool) -> Result<(), Error> {
        match self.holders()?.iter().any(is_stale) {
            true => Err(Error::LeaseKept(self.0.clone())),
            false => Ok(()),
        }
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
    use std::slice;

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
    fn leases_of_existing_pods_are_moved_and_others_are_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Leases(folder.path().join(name));
        let (earlier, leases) = (at("earlier"), at("run/ipip"));
        fs::create_dir(&earlier.0).unwrap();
        for (name, text) in [
            ("10.42.1.2", "pod\r\neth0"),
            ("10.42.1.3", "gone\r\neth0"),
            ("10.42.1.4", ""),
            ("last_reserved_ip.0", "10.42.1.3"),
            ("lock", ""),
        ] {
            fs::write(earlier.0.join(name), text).unwrap();
        }
        let network = Network("ipip".into());
        let pod = Attachment {
            container_id: "pod".into(),
            ifname: "eth0".into(),
        };
        let links = HashSet::from([network.host_ifname(&pod), "eth0".to_owned()]);
        for _ in 0..2 {
            leases.take(&earlier, &network, &links).unwrap();
            assert_eq!(leases.holders().unwrap(), slice::from_ref(&pod));
            assert!(leases.0.join("10.42.1.2").exists() && !earlier.0.exists());
        }
    }

    #[test]
    fn a_network_without_leases_has_none() {
        let leases = Leases("/nonexistent/ipip".into());
        assert_eq!(leases.holders().unwrap(), []);
        leases.remove_half_written().unwrap();
    }
}
