//! Detects changes of files in a few folders.

use crate::stamp::Stamp;
use std::{collections::BTreeMap, fs, path::PathBuf};

/// Folders, and the stamps of their files at the last poll.
#[derive(Debug)]
pub struct FolderWatch {
    folders: Vec<PathBuf>,
    files: BTreeMap<PathBuf, Stamp>,
}

impl FolderWatch {
    /// Starts with the current files of `folders`; a folder may be absent.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let folders: Vec<_> = folders.into_iter().collect();
        let files = files_in(&folders);
        Self { folders, files }
    }

    /// Whether a file has changed since the last call.
    pub fn has_changed(&mut self) -> bool {
        let now = files_in(&self.folders);
        let has_changed = now != self.files;
        self.files = now;
        has_changed
    }
}

/// The files of all folders. An unreadable folder or file counts as absent.
fn files_in(folders: &[PathBuf]) -> BTreeMap<PathBuf, Stamp> {
    let entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter_map(|path| Some((path.clone(), Stamp::of(&path)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_change_of_a_file_is_reported_once() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("net.d");
        let file = folder.join("list");
        let mut watch = FolderWatch::new([folder.clone(), parent.path().join("absent")]);
        assert!(!watch.has_changed());
        let steps: [&dyn Fn(); 6] = [
            &|| {
                fs::create_dir(&folder).unwrap();
                fs::write(&file, "one").unwrap();
            },
            &|| fs::write(&file, "two").unwrap(),
            &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap(),
            &|| {
                fs::write(folder.join("new"), "two").unwrap();
                fs::rename(folder.join("new"), &file).unwrap();
            },
            &|| fs::remove_file(&file).unwrap(),
            &|| {
                fs::remove_dir(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
                fs::write(&file, "two").unwrap();
            },
        ];
        for (number, step) in steps.into_iter().enumerate() {
            // File times have the granularity of the kernel's tick, at most 10 ms.
            std::thread::sleep(std::time::Duration::from_millis(20));
            step();
            assert!(watch.has_changed(), "step {number}");
            assert!(!watch.has_changed(), "step {number}");
        }
    }
}
