//! Copies the CNI plugins from a source folder (in a container: a folder of its image) to the host's folder.

use super::{Error, failed, file};
use crate::{config::Config, stamp::Stamp};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tracing::info;

/// Plugins without which no pod can be added.
pub const NEEDED: [&str; 2] = ["ipip", "host-local"];
/// Plugins that the list names if they are installed.
pub const CHAINED: [&str; 2] = ["portmap", "bandwidth"];
/// Runtimes call this plugin by themselves; no list names it.
const LOOPBACK: &str = "loopback";

/// Keeps the plugins installed.
#[derive(Debug, Default)]
pub struct Plugins {
    /// The stamp of each installed file whose content was right. A file with an unchanged stamp is not read again.
    known: Vec<(PathBuf, Stamp)>,
}

impl Plugins {
    /// Copies the plugins that differ.
    pub fn ensure(&mut self, config: &Config) -> Result<(), Error> {
        let Some(source) = &config.cni_bin_source else {
            return Ok(());
        };
        let folder = &config.cni_bin_dir;
        fs::create_dir_all(folder).map_err(failed("create folder", folder))?;
        for plugin in NEEDED.into_iter().chain(CHAINED).chain([LOOPBACK]) {
            self.ensure_one(&source.join(plugin), &folder.join(plugin))?;
        }
        Ok(())
    }

    fn ensure_one(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        let known = self.known.iter().find(|(path, _)| path == to);
        if known.is_some_and(|(_, known)| Stamp::of(to).as_ref() == Some(known)) {
            return Ok(());
        }
        let content = fs::read(from).map_err(|source| Error::Source {
            path: from.to_owned(),
            source,
        })?;
        if file::replace(to, &content, 0o755)? {
            info!(plugin = %to.display(), "plugin installed");
        }
        self.known.retain(|(path, _)| path != to);
        self.known
            .extend(Stamp::of(to).map(|stamp| (to.to_owned(), stamp)));
        Ok(())
    }
}

/// Returns the plugins out of [`CHAINED`] that are in `folder`.
///
/// # Errors
/// [`Error::NoPlugin`] if one of [`NEEDED`] is missing.
pub fn present(folder: &Path) -> Result<Vec<&'static str>, Error> {
    let is_there = |plugin: &&str| folder.join(plugin).is_file();
    if let Some(plugin) = NEEDED.into_iter().find(|plugin| !is_there(plugin)) {
        return Err(Error::NoPlugin {
            plugin,
            folder: folder.to_owned(),
        });
    }
    Ok(CHAINED.into_iter().filter(is_there).collect())
}
