//! What probes have shown, in a file, so that the next agent of this boot begins with it. After a boot everything is proven
//! anew.

use crate::{
    files::absent_is_fine,
    paths::{
        candidate::Candidate,
        uses::{Use, Uses},
    },
};
use ipip_abi::Candidate as Number;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};
use tracing::warn;

const NAME: &str = "paths.json";
/// The kernel's name of the current boot (`man 4 random`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file.
#[derive(Debug)]
pub struct PathsFile {
    path: PathBuf,
    boot: String,
}

#[derive(Serialize, Deserialize)]
struct Content {
    boot: String,
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
        Ok(Self {
            path: state_dir.join(NAME),
            boot: fs::read_to_string(BOOT_ID)?.trim().to_owned(),
        })
    }

    /// What an earlier agent of this boot has written.
    pub fn read(&self) -> Uses {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(%error, file = %self.path.display(), "cannot read the paths in use; they are proven anew");
                }
                return Uses::new();
            }
        };
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if content.boot == self.boot => uses(content.peers),
            Ok(_) => Uses::new(),
            Err(error) => {
                warn!(%error, file = %self.path.display(), "cannot read the paths in use; they are proven anew");
                Uses::new()
            }
        }
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
        let content = Content {
            boot: self.boot.clone(),
            peers: peers.collect(),
        };
        // The next agent must not see half a file. It need not survive a power failure, because the boot does not either.
        let new = self.path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(&content)?)?;
        fs::rename(&new, &self.path)
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

/// Removes the file from a state folder. An absent one is no error.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(state_dir.join(NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_in_the_same_boot_only() {
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

        let later = PathsFile {
            boot: "another".into(),
            ..PathsFile::new(folder.path()).unwrap()
        };
        assert_eq!(later.read(), Uses::new());
        for damaged in ["", "{", "[]", "{\"boot\": 1}"] {
            fs::write(folder.path().join(NAME), damaged).unwrap();
            assert_eq!(file.read(), Uses::new(), "{damaged}");
        }
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
