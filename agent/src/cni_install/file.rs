//! Files that others read at any moment: they see the old content or the new one, never a part.

use super::{Error, failed};
use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Makes `path` hold `content` with this mode, unless it does; whether it had to.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    match fs::read(path) {
        Ok(old) if old == content && has_mode(path, mode) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path)(error)),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Of no kind that a runtime reads, and in the same file system.
    let fresh = path.with_file_name(format!(".{name}.new"));
    let written = write(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // Nobody reads it; the first error tells more than one of the removal would.
        let _ = fs::remove_file(&fresh);
    }
    written.map_err(failed("write", path))?;
    Ok(true)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    // Else a power failure after the new name could leave an empty file.
    file.sync_all()
}

fn has_mode(path: &Path, mode: u32) -> bool {
    fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o777 == mode)
}
