//! `ipip-agent prepare`: what needs more rights on the host than a running agent has. An init
//! container runs it, privileged; doing it again changes nothing.

#[cfg(feature = "kubernetes")]
mod api_server;

use crate::{
    config::Config,
    daemon::lock::{self, Lock},
    host::{forwarding, ipip0},
};
use ipip_netlink::Netlink;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    io,
    path::{Path, PathBuf},
};
use tracing::info;

/// The tunnel interface gets the MTU of the uplinks when the agent knows them.
const MTU: u16 = 1500;

/// The file in which `prepare` leaves the address of the API server for the agent, which must not
/// read the kubelet's configuration. It is the first of the default `kubeletKubeconfigs`.
pub const API_SERVER_FILE: &str = "/run/ipip/api-server.conf";

/// What could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent runs, and has all that it needs.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The file system for programs and maps.
    #[error(
        "pinRoot: cannot mount bpffs on {path}: {source}; remedy: run `ipip-agent prepare` privileged, or mount it (`mount -t bpf bpf {path}`)"
    )]
    Bpffs {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel setting.
    #[error(transparent)]
    Forwarding(#[from] forwarding::Error),
    /// The tunnel interface.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// Links.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The address of the API server.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    ApiServer(#[from] api_server::Error),
}

/// Does all of it, and says what.
pub fn prepare(config: &Config) -> Result<(), Error> {
    let _lock = Lock::take(&config.state_dir)?;
    bpffs(config.pin_root.parent().unwrap_or(Path::new("/")))?;
    forwarding::ensure(&config.state_dir)?;
    info!("the host forwards packets (net.ipv4.ip_forward)");
    let mut netlink = Netlink::open()?;
    // Its settings are below /proc/sys, which is read-only for a container that is not privileged.
    let mtu = netlink
        .link(ipip0::NAME)?
        .and_then(|link| link.mtu.try_into().ok());
    ipip0::ensure(&mut netlink, mtu.unwrap_or(MTU))?;
    info!(interface = ipip0::NAME, "the tunnel interface is there");
    #[cfg(feature = "kubernetes")]
    api_server::write(config, Path::new(API_SERVER_FILE))?;
    Ok(())
}

fn bpffs(path: &Path) -> Result<(), Error> {
    let at = |source: nix::Error| Error::Bpffs {
        path: path.to_owned(),
        source: source.into(),
    };
    if statfs(path).map_err(at)?.filesystem_type() == BPF_FS_MAGIC {
        info!(path = %path.display(), "bpffs is mounted already");
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700")).map_err(at)?;
    info!(path = %path.display(), "bpffs is mounted");
    Ok(())
}
