//! `ipip-agent uninstall`: removes all that an agent ever makes on a host.

use crate::{
    cni_install,
    commands::prepare::API_SERVER_FILE,
    config::Config,
    daemon::lock::{self, Lock},
    host::{
        forwarding, fou, ipip0,
        masquerade::{self, Masquerade},
    },
    reconcile::host_route::ROUTE_PROTOCOL,
};
use ipip_datapath::{Pins, remove};
use ipip_netlink::{Netlink, Route};
use std::{fs, io, path::Path};
use tracing::info;

/// One thing that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent runs and would make everything again.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Programs, maps, links.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// The tunnel interface.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Routes.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The table of nftables.
    #[error(transparent)]
    Masquerade(#[from] masquerade::Error),
    /// The sockets that merge.
    #[error(transparent)]
    Merging(#[from] fou::Error),
    /// The kernel setting.
    #[error(transparent)]
    Forwarding(#[from] forwarding::Error),
    /// The list for container runtimes.
    #[error(transparent)]
    Cni(#[from] cni_install::Error),
    /// The state folder, or the file with the API server's address.
    #[error("cannot remove {path}: {source}")]
    File {
        /// What.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Removes everything, whatever fails on the way, and tells what did.
pub fn uninstall(config: &Config) -> Result<(), Vec<Error>> {
    let lock = Lock::take(&config.state_dir).map_err(|error| vec![error.into()])?;
    let mut errors: Vec<Error> = Vec::new();
    // No pod shall be added to what is about to go.
    errors.extend(cni_install::remove_list(config).map_err(Error::from).err());
    // Without the programs these sockets would take packets, and from anybody.
    errors.extend(fou::remove(&config.state_dir).map_err(Error::from).err());
    // Then the programs: from then on the host is on its own.
    errors.extend(
        remove(&Pins::new(&config.pin_root))
            .map_err(Error::from)
            .err(),
    );
    errors.extend(remove_from_kernel());
    errors.extend(Masquerade::default().apply().map_err(Error::from).err());
    errors.extend(
        forwarding::restore(&config.state_dir)
            .map_err(Error::from)
            .err(),
    );
    errors.extend(remove_address(Path::new(API_SERVER_FILE)).err());
    errors.extend(lock.remove().map_err(failed(&config.state_dir)).err());
    if errors.is_empty() {
        info!("everything is removed");
        return Ok(());
    }
    Err(errors)
}

/// What `prepare` leaves for an agent that may not read the kubelet's configuration, and the folder
/// if nothing else is in it.
fn remove_address(path: &Path) -> Result<(), Error> {
    let gone = |removed: io::Result<()>| match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(fs::remove_file(path)).map_err(failed(path))?;
    match path.parent() {
        Some(folder) => gone(lock::remove_if_empty(folder)).map_err(failed(folder)),
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
    // Those through ipip0 went with it; pods' unreachable ranges did not.
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
