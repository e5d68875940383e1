//! The plugins' programs, copied from a folder of ours (in a container: of its image) into the host's.

use super::{Error, failed, file};
use crate::{config::Config, stamp::Stamp};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tracing::info;

/// Without these no pod can be added.
pub const NEEDED: [&str; 2] = ["ipip", "host-local"];
/// Those of the list that it can do without.
pub const CHAINED: [&str; 2] = ["portmap", "bandwidth"];
/// Runtimes call it by themselves.
const LOOPBACK: &str = "loopback";

/// What was installed.
#[derive(Debug, Default)]
pub struct Plugins {
    /// Files that have the right content, each with its stamp: they are not read again.
    known: Vec<(PathBuf, Stamp)>,
}

impl Plugins {
    /// Copies what differs.
    pub fn ensure(&mut self, config: &Config) -> Result<(), Error> {
        let Some(source) = &config.cni_bin_source else {
            return Ok(());
        };
        let folder = &config.cni_bin_dir;
        fs::create_dir_all(folder).map_err(failed("make folder", folder))?;
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
            info!(plugin = %to.display(), "installed");
        }
        self.known.retain(|(path, _)| path != to);
        self.known
            .extend(Stamp::of(to).map(|stamp| (to.to_owned(), stamp)));
        Ok(())
    }
}

/// Which of the plugins that the list may name are in `folder`.
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
