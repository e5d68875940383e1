//! Atomic replacement of files: a reader sees the old or the new content, never a part.

use super::{Error, failed};
use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Gives `path` this content and mode, and returns whether that changed anything.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    match fs::read(path) {
        Ok(old) if old == content && has_mode(path, mode) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path)(error)),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // In the folder of `path`, because a rename works only inside one file system. Runtimes ignore files with this
    // suffix.
    let fresh = path.with_file_name(format!(".{name}.new"));
    let written = write(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // If the removal fails too, only the error of the write is reported.
        let _ = fs::remove_file(&fresh);
    }
    written.map_err(failed("write", path))?;
    Ok(true)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    // Otherwise a power failure after the rename could leave an empty file.
    file.sync_all()
}

fn has_mode(path: &Path, mode: u32) -> bool {
    fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o777 == mode)
}
