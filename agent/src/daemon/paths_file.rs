//! What probes have shown, in a file, so that the next agent of this boot begins with it. After a boot everything is proven
//! anew.

use crate::{
    daemon::boot_file::BootFile,
    paths::{
        candidate::Candidate,
        uses::{Use, Uses},
    },
};
use ipip_abi::Candidate as Number;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    path::Path,
};

/// Name of the file in the state folder.
pub const PATHS_FILE: &str = "paths.json";

/// The file.
#[derive(Debug)]
pub struct PathsFile(BootFile);

#[derive(Serialize, Deserialize)]
struct Content {
    peers: BTreeMap<String, Known>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    /// Name and address of the path.
    path: Option<(String, Ipv4Addr)>,
    mtu: Option<u16>,
    proven: BTreeSet<Ipv4Addr>,
}

impl PathsFile {
    /// The file in `state_dir`.
    ///
    /// # Errors
    /// The name of the boot cannot be read.
    pub fn new(state_dir: &Path) -> io::Result<Self> {
        BootFile::new(state_dir, PATHS_FILE).map(Self)
    }

    /// What an earlier agent of this boot has written.
    pub fn read(&self) -> Uses {
        let content = self.0.read::<Content>();
        content.map_or_else(Uses::new, |it| uses(it.peers))
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, uses: &Uses) -> io::Result<()> {
        let peers = uses.iter().map(|(name, shown)| {
            let known = Known {
                path: shown.path.map(|it| (it.number.name().into(), it.address)),
                mtu: shown.mtu,
                proven: shown.proven.clone(),
            };
            (name.clone(), known)
        });
        let peers = peers.collect();
        self.0.write(&Content { peers })
    }
}

fn uses(peers: BTreeMap<String, Known>) -> Uses {
    let number = |name: &str| Number::ALL.iter().find(|it| it.name() == name);
    let uses = peers.into_iter().map(|(name, known)| {
        let path = known.path.as_ref().and_then(|(word, address)| {
            Some(Candidate {
                number: *number(word)?,
                address: *address,
            })
        });
        let Known { mtu, proven, .. } = known;
        (name, Use { path, mtu, proven })
    });
    uses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = PathsFile::new(folder.path()).unwrap();
        assert_eq!(file.read(), Uses::new());
        let address = Ipv4Addr::new(10, 0, 0, 12);
        let path = Candidate {
            number: Number::PrivateUdp,
            address,
        };
        let known = Use {
            path: Some(path),
            mtu: Some(1372),
            proven: BTreeSet::from([address]),
        };
        let uses = Uses::from([("a2".into(), known), ("b1".into(), Use::default())]);
        file.write(&uses).unwrap();
        assert_eq!(file.read(), uses);
    }
}
