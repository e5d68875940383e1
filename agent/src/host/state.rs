//! Small files in the state folder: what `uninstall` must know of a host as it was before us, or of what
//! we made on it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}; remedy: correct stateDir or its permissions")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The text of a file; none if there is none.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some).map_err(failed("read", path)),
    }
}

/// Makes or replaces a file.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(failed("write", path))
}

/// Removes a file.
pub fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(failed("remove", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        action,
        path,
        source,
    }
}
