//! The files that the agent leaves in its state folder.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use std::{fs, io, path::Path};

/// Reads a JSON file in `state_dir`; `None` if it is absent. `what` says in errors what it is.
pub fn read<T: DeserializeOwned>(state_dir: &Path, name: &str, what: &str) -> Result<Option<T>> {
    let path = state_dir.join(name);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| {
            format!(
                "cannot read {}: correct --state-dir, or run as root",
                path.display()
            )
        })?,
    };
    let content = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not {what} of this version", path.display()))?;
    Ok(Some(content))
}
