//! Installs the files that container runtimes need on the host: the CNI plugins, and the network configuration list
//! that names them.
//!
//! The plugins come first. The list comes last, when the datapath is ready, because runtimes add pods as soon as
//! they find it.

mod boot;
mod conflist;
mod file;
mod foreign;
mod others;
mod plugins;
mod results;

pub use boot::{Rule, withdraw_after_boot};
pub use results::remove_damaged as remove_damaged_results;

use crate::{
    config::Config,
    files::absent_is_fine,
    other_networks::table::{self, NETWORKS},
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use others::Others;
use plugins::Plugins;
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::info;

/// A copy of the list in the state folder: plugins of others survive a boot, which makes the list invalid.
const COPY: &str = "cni.conflist";

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
        "cannot {action} {path}: {source}; remedy: give the agent write access (in a container: mount the host's folder), or correct cniBinDir, cniConfDir and hostRoot"
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
        let Some(path) = list_path(config) else {
            return Ok(());
        };
        let own = conflist::render(config, pods, &plugins::present(&config.cni_bin_dir)?)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(failed("create folder", folder))?;
        let others = Others::beside(&path);
        let found = others::read_settled(&path).filter(foreign::is_ours);
        let list = match found.clone().or_else(|| earlier(config, &others)) {
            Some(found) => foreign::keep(own, &found),
            None => own,
        };
        // A program that formats the list otherwise has not changed it, and would change it again.
        if found.as_ref() != Some(&list) {
            file::replace(&path, conflist::text(&list).as_bytes(), 0o644)?;
            info!(path = %path.display(), "CNI configuration written for container runtimes");
        }
        keep_copy(config, &list)?;
        for earlier in &others.earlier {
            remove(earlier)?;
            info!(path = %earlier.display(), "our CNI configuration under another name is removed");
        }
        // They are reported and not changed: the operator decides which network stays.
        let problem = |other: &String| Problem::new(Reason::OtherNetwork, warning(&path, other));
        self.problems = others.networks.iter().map(problem).collect();
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
    let Some(path) = list_path(config) else {
        return Ok(());
    };
    let mut ours = Others::beside(&path).earlier;
    ours.extend([path, config.state_dir.join(COPY)]);
    ours.iter().try_for_each(|path| remove(path))
}

/// The path of the list, if the agent writes one.
fn list_path(config: &Config) -> Option<PathBuf> {
    Some(config.cni_conf_dir.as_ref()?.join(&config.cni_conf_file))
}

/// The state of the list before it was removed or renamed. Plugins of others that are no longer installed would fail
/// each pod, so they are left out.
fn earlier(config: &Config, others: &Others) -> Option<Value> {
    let copy = config.state_dir.join(COPY);
    let mut paths = others.earlier.iter().chain([&copy]);
    let list = paths.find_map(|path| others::read(path).filter(foreign::is_ours))?;
    let folder = &config.cni_bin_dir;
    Some(foreign::without_absent(list, |plugin| {
        folder.join(plugin).is_file()
    }))
}

fn keep_copy(config: &Config, list: &Value) -> Result<(), Error> {
    let copy = config.state_dir.join(COPY);
    file::replace(&copy, conflist::text(list).as_bytes(), 0o644)?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path)).map_err(failed("remove", path))
}

/// The warning about another network's configuration. Runtimes use the first file by name.
fn warning(list: &Path, other: &str) -> String {
    let path = list.with_file_name(other);
    let own = list.file_name().unwrap_or_default().to_string_lossy();
    let network = NETWORKS
        .iter()
        .find(|it| table::matches(it.configurations, other));
    let remedy = match network {
        Some(it) => format!(
            "remedy: once {0} runs on no node, `ipip-agent prepare --clean-up-after {0}`",
            it.name
        ),
        None => "remedy: remove that network and this file".to_owned(),
    };
    let path = path.display();
    if other < &*own {
        format!(
            "{path}: this configuration of another network sorts before {own}, so new pods join that network; {remedy}"
        )
    } else {
        format!(
            "{path}: this configuration of another network is unused, because {own} sorts before it; {remedy}"
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
