//! `ipip-agent uninstall`: removes everything that an agent creates on a host.

use crate::{
    cni_install,
    commands::prepare::API_SERVER_FILE,
    config::Config,
    daemon::{
        boot_file,
        lock::{self, Lock},
        paths_file::PATHS_FILE,
        paths_socket, report_file,
    },
    files::absent_is_fine,
    host::{
        forward_accept, fou, guard, ipip0,
        masquerade::{self, Masquerade},
        network_managers, sysctls,
    },
    probe_key::{KEY_FILE, host_folder},
    reconcile::host_route::ROUTE_PROTOCOL,
};
use ipip_datapath::{Pins, TRAFFIC_FILE, remove};
use ipip_netlink::{Netlink, Route};
use std::{fs, io, path::Path};
use tracing::info;

/// A step of the removal has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent is running and would create everything again.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Programs, maps or links cannot be removed.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// The tunnel interface cannot be removed.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Routes cannot be removed.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The nftables table cannot be removed.
    #[error(transparent)]
    Masquerade(#[from] masquerade::Error),
    /// The rules that keep other machines out cannot be removed.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// The accept rules cannot be removed.
    #[error(transparent)]
    ForwardAccept(#[from] forward_accept::Error),
    /// The FOU sockets cannot be removed.
    #[error(transparent)]
    Fou(#[from] fou::Error),
    /// A kernel setting cannot be restored.
    #[error(transparent)]
    Sysctl(#[from] sysctls::RestoreError),
    /// The drop-ins for network managers cannot be removed.
    #[error(transparent)]
    NetworkManagers(#[from] network_managers::Error),
    /// The CNI configuration cannot be removed.
    #[error(transparent)]
    Cni(#[from] cni_install::Error),
    /// The state folder, or a file that `prepare` has written, cannot be removed.
    #[error("cannot remove {path}: {source}")]
    File {
        /// The file or folder.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

/// Removes everything. A step that fails does not stop the others.
///
/// # Errors
/// One error for each step that has failed.
pub fn uninstall(config: &Config) -> Result<(), Vec<Error>> {
    let lock = Lock::take(&config.state_dir).map_err(|error| vec![error.into()])?;
    let mut errors: Vec<Error> = Vec::new();
    // First the CNI configuration, so that no pod is added to a datapath that is being removed.
    errors.extend(cni_install::remove_list(config).map_err(Error::from).err());
    if let Some(rule) = cni_install::Rule::of(config) {
        errors.extend(rule.remove().map_err(Error::from).err());
    }
    // FOU sockets before the programs: without the programs the kernel would decapsulate packets from
    // any sender.
    errors.extend(fou::remove(&config.state_dir).map_err(Error::from).err());
    // Once the programs are removed, no part of the datapath is active.
    errors.extend(
        remove(&Pins::new(&config.pin_root))
            .map_err(Error::from)
            .err(),
    );
    errors.extend(remove_from_kernel());
    errors.extend(Masquerade::default().apply().map_err(Error::from).err());
    errors.extend(guard::remove().map_err(Error::from).err());
    errors.extend(forward_accept::remove().map_err(Error::from).err());
    let restored = sysctls::restore(&config.state_dir);
    errors.extend(restored.into_iter().map(Error::from));
    errors.extend(
        network_managers::remove(&config.host_root)
            .map_err(Error::from)
            .err(),
    );
    let folders = host_folder(&config.host_root).into_iter();
    for folder in folders.chain([config.run_dir.clone()]) {
        errors.extend(remove_prepared(&folder.join(KEY_FILE)).err());
    }
    errors.extend(remove_prepared(Path::new(API_SERVER_FILE)).err());
    errors.extend(
        report_file::remove(&config.state_dir)
            .and_then(|()| boot_file::remove(&config.state_dir, TRAFFIC_FILE))
            .and_then(|()| boot_file::remove(&config.state_dir, PATHS_FILE))
            .and_then(|()| paths_socket::remove(&config.state_dir))
            .map_err(failed(&config.state_dir))
            .err(),
    );
    errors.extend(lock.remove().map_err(failed(&config.state_dir)).err());
    if errors.is_empty() {
        info!("everything is removed");
        return Ok(());
    }
    Err(errors)
}

/// Removes a file that `prepare` writes for the agent, and then its folder if it is empty.
fn remove_prepared(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path)).map_err(failed(path))?;
    match path.parent() {
        Some(folder) => absent_is_fine(lock::remove_if_empty(folder)).map_err(failed(folder)),
        None => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File {
        path: path.display().to_string(),
        source,
    }
}

fn remove_from_kernel() -> Vec<Error> {
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return vec![error.into()],
    };
    let mut errors: Vec<Error> = Vec::new();
    errors.extend(ipip0::remove(&mut netlink).map_err(Error::from).err());
    // The kernel has removed the routes through ipip0. The unreachable routes of pod CIDRs remain.
    match netlink.routes() {
        Ok(routes) => {
            let is_ours = |route: &&Route| route.protocol == ROUTE_PROTOCOL;
            for route in routes.iter().filter(is_ours) {
                errors.extend(netlink.delete_route(route).map_err(Error::from).err());
            }
        }
        Err(error) => errors.push(error.into()),
    }
    errors
}
