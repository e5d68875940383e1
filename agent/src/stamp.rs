//! Detects changed files. The agent polls them: a kernel watch (inotify) ends with its folder, does not
//! follow symbolic links, and hosts full of pods run out of watches.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Identifies a version of a file. It changes when the file is written, replaced, or gets another mode, and when a
/// symbolic link on the way to it leads elsewhere.
///
/// Two writes of the same length within one tick of the kernel's clock (1 to 10 ms) have the same stamp.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// `ctime` and not `mtime`, which can be set back: seconds and nanoseconds.
    changed: (i64, i64),
    mode: u32,
}

impl Stamp {
    /// The stamp of the file to which `path` leads through symbolic links, or `None` if it cannot be
    /// reached.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
        })
    }
}
