//! `ipip-agent prepare`: what needs more rights on the host than a running agent has. An init
//! container runs it, privileged; doing it again changes nothing.

use crate::{
    config::Config,
    daemon::lock::{self, Lock},
    host::{forwarding, ipip0},
    nodes::kubernetes::api_server::{self, REDUCED},
};
use ipip_netlink::Netlink;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::info;

/// The tunnel interface gets the MTU of the uplinks when the agent knows them.
const MTU: u16 = 1500;

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
    #[error("cannot write {path}: {source}; remedy: mount a folder there that can be written")]
    Address {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
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
    address(config, Path::new(REDUCED))
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

/// Passes on the API server's address, and no credentials, from the kubelet's own configuration.
fn address(config: &Config, reduced: &Path) -> Result<(), Error> {
    let found = config
        .kubelet_kubeconfigs
        .iter()
        .filter(|path| *path != reduced)
        .find_map(|path| Some((path, api_server::server(path)?)));
    let Some((path, url)) = found else {
        info!("no kubeconfig of a kubelet is here that names the API server");
        return Ok(());
    };
    fs::write(reduced, api_server::reduced(&url)).map_err(|source| Error::Address {
        path: reduced.to_owned(),
        source,
    })?;
    info!(url, from = %path.display(), "the API server's address is passed on");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, judge};

    #[test]
    fn the_address_is_passed_on_and_the_kubelets_credentials_are_not() {
        let folder = tempfile::TempDir::new().unwrap();
        let (kubelet, reduced) = (
            folder.path().join("kubelet.conf"),
            folder.path().join("out"),
        );
        let text = "
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: \"https://192.0.2.1:6443\"}}]
users: [{name: u, user: {token: secret}}]
";
        fs::write(&kubelet, text).unwrap();
        let origin = (kubelet.to_str().unwrap().to_owned(), Origin::Default);
        let config = judge([("kubeletKubeconfigs", origin)].into(), "a1").unwrap();
        address(&config, &reduced).unwrap();
        let server = api_server::server(&reduced);
        assert_eq!(server.as_deref(), Some("https://192.0.2.1:6443"));
        assert!(!fs::read_to_string(&reduced).unwrap().contains("secret"));
    }
}
