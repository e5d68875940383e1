//! Files that may be absent, and files that a power failure must not damage.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Turns the error that a file or folder to be removed does not exist into success.
pub fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Creates or replaces a file: a reader sees the old or the new content, never a part, also after a power failure.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // In the folder of `path`, because a rename works only inside one file system. Container runtimes ignore files with
    // this suffix.
    let fresh = path.with_file_name(format!(".{name}.new"));
    let written = write(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // If the removal fails too, only the error of the write is reported.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Creates or replaces a file: a reader sees the old or the new content. After a power failure it may be damaged.
pub fn replace_unsynced(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // From the start, because it may be a secret; the mask of the process may take bits away.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    // Otherwise a power failure after the rename could leave an empty file.
    file.sync_all()
}
