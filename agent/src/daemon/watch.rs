//! Whether files in a few folders have changed.
//!
//! They are looked at once a second. A watch of the kernel's would be lost with its folder, and hosts
//! full of pods run out of them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Folders, and what was in them when they were looked at last.
#[derive(Debug)]
pub struct Watch {
    folders: Vec<PathBuf>,
    seen: BTreeMap<PathBuf, Stamp>,
}

/// Differs if somebody has written or replaced the file: device, inode, bytes, time, mode.
type Stamp = (u64, u64, u64, (i64, i64), u32);

impl Watch {
    /// Looks at the folders for the first time; they need not be there.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let folders: Vec<_> = folders.into_iter().collect();
        let seen = look(&folders);
        Self { folders, seen }
    }

    /// Whether anything has changed since this was asked last.
    pub fn has_changed(&mut self) -> bool {
        let now = look(&self.folders);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

/// What cannot be read is not there.
fn look(folders: &[PathBuf]) -> BTreeMap<PathBuf, Stamp> {
    let files = folders.iter().flat_map(fs::read_dir).flatten().flatten();
    let files = files.map(|entry| entry.path());
    files
        .filter_map(|path| Some((path.clone(), stamp(&path)?)))
        .collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let it = fs::metadata(path).ok()?;
    let changed = (it.ctime(), it.ctime_nsec());
    Some((it.dev(), it.ino(), it.len(), changed, it.mode()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn whatever_is_done_to_a_file_is_seen_once() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("net.d");
        let file = folder.join("list");
        let mut watch = Watch::new([folder.clone(), parent.path().join("absent")]);
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
            // The clock of files ticks every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            step();
            assert!(watch.has_changed(), "step {number}");
            assert!(!watch.has_changed(), "step {number}");
        }
    }
}
