//! Small files in the state folder: previous values of host settings, and the objects that the agent created.
//! `uninstall` reads them.

use crate::files;
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

/// Returns the text of a file, or `None` if the file does not exist.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some).map_err(failed("read", path)),
    }
}

/// Creates or replaces a file.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    files::replace(path, text.as_bytes(), 0o644).map_err(failed("write", path))
}

/// Removes a file.
pub fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(failed("remove", path))
}

/// The names of the files in a folder; none if the folder does not exist.
pub fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("read", folder))?,
    };
    let name = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let names: io::Result<Vec<String>> = entries.map(name).collect();
    names.map_err(failed("read", folder))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        action,
        path,
        source,
    }
}
