//! Files that may be absent.

use std::io;

/// Turns the error that a file or folder to be removed does not exist into success.
pub fn absent_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
