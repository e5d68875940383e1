//! A JSON file in the state folder that an agent leaves to the next one of the same boot.

use crate::files::{self, absent_is_fine};
use ipip_datapath::BOOT_ID;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::warn;

/// The file.
#[derive(Debug)]
pub struct BootFile {
    path: PathBuf,
    boot: String,
}

#[derive(Deserialize, Serialize)]
struct Content<T> {
    /// The boot in which it was written.
    boot: String,
    #[serde(flatten)]
    content: T,
}

impl BootFile {
    /// The file with this name in `state_dir`.
    ///
    /// # Errors
    /// The name of the boot cannot be read.
    pub fn new(state_dir: &Path, name: &str) -> io::Result<Self> {
        Ok(Self {
            path: state_dir.join(name),
            boot: fs::read_to_string(BOOT_ID)?.trim().to_owned(),
        })
    }

    /// What an agent of this boot has written. A file that cannot be read is as good as none, with a warning.
    pub fn read<T: DeserializeOwned>(&self) -> Option<T> {
        let content =
            fs::read(&self.path).and_then(|text| Ok(serde_json::from_slice::<Content<T>>(&text)?));
        match content {
            Ok(it) => (it.boot == self.boot).then_some(it.content),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(%error, file = %self.path.display(), "cannot read what the agent before this one left; it begins anew");
                }
                None
            }
        }
    }

    /// Replaces the file. A power failure may damage it, because the next boot does not use it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write<T: Serialize>(&self, content: &T) -> io::Result<()> {
        let boot = self.boot.clone();
        let text = serde_json::to_string(&Content { boot, content })? + "\n";
        files::replace_unsynced(&self.path, &text)
    }
}

/// Removes the file from a state folder. An absent one is no error.
pub fn remove(state_dir: &Path, name: &str) -> io::Result<()> {
    absent_is_fine(fs::remove_file(state_dir.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Numbers = BTreeMap<String, u16>;
    const NAME: &str = "numbers.json";

    #[test]
    fn what_was_written_is_read_in_the_same_boot_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let file = BootFile::new(folder.path(), NAME).unwrap();
        let read = || file.read::<Numbers>();
        assert_eq!(read(), None);
        let written = Numbers::from([("one".into(), 1)]);
        file.write(&written).unwrap();
        assert_eq!(read(), Some(written));

        let text = fs::read_to_string(&path).unwrap();
        let damaged = [
            text.replace(&file.boot, "another"),
            text[..text.len() / 2].to_owned(),
            String::new(),
            "[]".into(),
        ];
        for damaged in damaged {
            fs::write(&path, &damaged).unwrap();
            assert_eq!(read(), None, "{damaged}");
        }
        remove(folder.path(), NAME).unwrap();
        remove(folder.path(), NAME).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
