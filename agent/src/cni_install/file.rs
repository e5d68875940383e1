//! Replacement of files that differ.

use super::{Error, failed};
use crate::files;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

/// Gives `path` this content and mode, and returns whether that changed anything.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, Error> {
    match fs::read(path) {
        Ok(old) if old == content && has_mode(path, mode) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read", path)(error)),
    }
    files::replace(path, content, mode).map_err(failed("write", path))?;
    Ok(true)
}

fn has_mode(path: &Path, mode: u32) -> bool {
    fs::metadata(path).is_ok_and(|it| it.permissions().mode() & 0o777 == mode)
}
