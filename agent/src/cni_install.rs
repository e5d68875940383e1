//! Installs the files that container runtimes need on the host: the CNI plugins, and the network configuration list
//! that names them.
//!
//! The plugins come first. The list comes last, when the datapath is ready, because runtimes add pods as soon as
//! they find it.

mod conflist;
mod file;
mod plugins;

pub use conflist::NAME;

use crate::{
    config::Config,
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use plugins::Plugins;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::info;

/// The plugins or the list could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plugin in the source folder is missing or cannot be read.
    #[error(
        "cannot read the plugin {path}: {source}; remedy: correct cniBinSource, or leave it out to install nothing"
    )]
    Source {
        /// The plugin's file in the source folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be written, read or removed.
    #[error(
        "cannot {action} {path}: {source}; remedy: give the agent write access (in a container: mount the host's folder), or correct cniBinDir and cniConfDir"
    )]
    File {
        /// The attempt: `read`, `write`, `remove` or `create folder`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A plugin that the list must name is not installed.
    #[error(
        "{folder} has no plugin {plugin}, without which no pod can be added; remedy: install it, or set cniBinSource to a folder that has it"
    )]
    NoPlugin {
        /// The plugin.
        plugin: &'static str,
        /// The folder of plugins.
        folder: PathBuf,
    },
    /// `host-local` has no range.
    #[error(
        "this node has no pod CIDR, so pods cannot get an address; remedy: give the node a pod CIDR"
    )]
    NoRange,
}

/// Keeps plugins and list installed.
#[derive(Debug, Default)]
pub struct CniInstaller {
    plugins: Plugins,
    /// The configurations of other networks.
    problems: Vec<Problem>,
}

impl CniInstaller {
    /// Installs plugins that differ, and writes the list if it differs. Call it only when the datapath is
    /// ready. `pods` are the pod CIDRs of this node.
    pub fn ensure(&mut self, config: &Config, pods: &[Ipv4Network]) -> Result<(), Error> {
        self.plugins.ensure(config)?;
        let Some(folder) = &config.cni_conf_dir else {
            return Ok(());
        };
        let list = conflist::render(config, pods, &plugins::present(&config.cni_bin_dir)?)?;
        let path = folder.join(NAME);
        fs::create_dir_all(folder).map_err(failed("create folder", folder))?;
        if file::replace(&path, list.as_bytes(), 0o644)? {
            info!(path = %path.display(), "CNI configuration written for container runtimes");
        }
        // They are reported and not changed: the operator decides which network stays.
        let others = conflist::other_networks(folder);
        let problem = |other: &String| Problem::new(Reason::OtherNetwork, warning(folder, other));
        self.problems = others.iter().map(problem).collect();
        Ok(())
    }

    /// The configurations of other networks, as of the last [`Self::ensure`].
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// Removes the list, so that runtimes add no more pods. The plugins stay, because runtimes need them to delete
/// existing pods.
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

/// The warning about another network's configuration. Runtimes use the first file by name.
fn warning(folder: &Path, other: &str) -> String {
    let path = folder.join(other);
    let (path, remedy) = (path.display(), "remedy: remove that network and this file");
    if other < NAME {
        format!(
            "{path}: this configuration of another network sorts before {NAME}, so new pods join that network; {remedy}"
        )
    } else {
        format!(
            "{path}: this configuration of another network is unused, because {NAME} sorts before it; {remedy}"
        )
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}
