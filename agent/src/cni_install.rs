//! What a container runtime needs to find on the host: plugins, and the list that names them. The
//! plugins come first and the list last, when the datapath is ready: a runtime takes it for a
//! promise that pods can be added.

mod conflist;
mod file;
mod plugins;

pub use conflist::NAME;

use crate::config::Config;
use ipnetwork::Ipv4Network;
use plugins::Plugins;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// Why the runtime does not get what it needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plugin that is to be installed is not in the source, or cannot be read.
    #[error(
        "cannot read the plugin {path}: {source}; remedy: correct cniBinSource, or leave it out to install nothing"
    )]
    Source {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be written, read or removed.
    #[error(
        "cannot {action} {path}: {source}; remedy: let the agent write there (in a container: mount the host's folder), or correct cniBinDir and cniConfDir"
    )]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The list would name plugins that are not there.
    #[error(
        "{folder} has no plugin {plugin}, without which no pod can be added; remedy: install it, or name a folder that has it as cniBinSource"
    )]
    NoPlugin {
        /// The plugin.
        plugin: &'static str,
        /// Where it should be.
        folder: PathBuf,
    },
    /// There is no range for `host-local`.
    #[error("this node has no pod CIDR, so there is no address to give to pods")]
    NoRange,
}

/// Plugins and list, as they are kept.
#[derive(Debug, Default)]
pub struct Cni {
    plugins: Plugins,
    /// What an operator must know of the lists of others.
    remarks: Vec<String>,
}

impl Cni {
    /// Installs the plugins that differ and writes the list if it differs. To be called only when
    /// the datapath is ready.
    pub fn ensure(&mut self, config: &Config, pods: &[Ipv4Network]) -> Result<(), Error> {
        self.plugins.ensure(config)?;
        let Some(folder) = &config.cni_conf_dir else {
            return Ok(());
        };
        let list = conflist::conflist(config, pods, &plugins::present(&config.cni_bin_dir)?)?;
        let path = folder.join(NAME);
        fs::create_dir_all(folder).map_err(failed("make folder", folder))?;
        if file::replace(&path, list.as_bytes(), 0o644)? {
            info!(path = %path.display(), "the list for container runtimes is written");
        }
        self.complain_of_others(folder);
        Ok(())
    }

    /// What an operator must know, as of the last time.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Two networks on one node are the operator's to sort out: theirs is not touched.
    fn complain_of_others(&mut self, folder: &Path) {
        let others = conflist::others(folder);
        let remarks: Vec<String> = others.iter().map(|other| remark(folder, other)).collect();
        for remark in remarks.iter().filter(|it| !self.remarks.contains(it)) {
            warn!("{remark}");
        }
        self.remarks = remarks;
    }
}

/// Removes the list, so that no pod is added any more. The plugins stay: the runtime needs them to
/// delete the pods that are there.
pub fn remove_list(config: &Config) -> Result<(), Error> {
    let Some(folder) = &config.cni_conf_dir else {
        return Ok(());
    };
    let path = folder.join(NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

/// What there is to say of another network's list. Runtimes take the first by name.
fn remark(folder: &Path, other: &str) -> String {
    let path = folder.join(other);
    let (path, remedy) = (path.display(), "remedy: remove it with its network");
    match other < NAME {
        true => format!(
            "{path}: another network's configuration comes before {NAME}, so new pods are in that network; {remedy}"
        ),
        false => format!(
            "{path}: another network's configuration is there; new pods are in ours, as {NAME} comes first; {remedy}"
        ),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}
