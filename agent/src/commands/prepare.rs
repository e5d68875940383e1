//! `ipip-agent prepare`: the steps that need more privileges on the host than the running agent has. A
//! privileged init container runs it. It is idempotent.

#[cfg(feature = "kubernetes")]
mod api_server;

use crate::{
    cni_install,
    config::Config,
    daemon::lock::{self, Lock},
    host::{ipip0, network_managers, resolvers, sysctls},
    other_networks::{clean_up, table},
    probe_key,
};
use ipip_datapath::{Pins, load, memory_is_limited};
use ipip_netlink::Netlink;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// Initial MTU of the tunnel interface, in bytes. The agent replaces it when it knows the uplinks.
const MTU: u16 = 1500;

/// File with the address of the API server. `prepare` writes it for the agent, which has no access to the kubelet's
/// configuration. It is the first of the default `kubeletKubeconfigs`.
pub const API_SERVER_FILE: &str = "/run/ipip/api-server.conf";

/// File with this host's resolvers, for the agent. It is one of the default `resolverFiles`.
const RESOLVERS_FILE: &str = "/run/ipip/resolv.conf";

/// A step of `prepare` has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An agent is running.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The file system for programs and maps cannot be mounted.
    #[error(
        "pinRoot: cannot mount bpffs on {path}: {source}; remedy: run `ipip-agent prepare` privileged, or mount it (`mount -t bpf bpf {path}`)"
    )]
    Bpffs {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The datapath cannot be loaded.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// A kernel setting cannot be changed.
    #[error(transparent)]
    Sysctl(#[from] sysctls::Error),
    /// The tunnel interface cannot be created.
    #[error(transparent)]
    Ipip0(#[from] ipip0::Error),
    /// The links cannot be read.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The leftovers of another network cannot be removed.
    #[error(transparent)]
    CleanUp(#[from] clean_up::Error),
    /// The resolvers, or the address of the API server, cannot be written.
    #[error("cannot write {path}: {source}; remedy: mount a writable folder there")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Carries out every step, and logs each. Beside a running agent, it only does those that concern other software of
/// the host: drop-ins for network managers, and leftovers of other networks. A step that fails does not stop the others.
///
/// # Errors
/// One error for each step that has failed. What concerns other software is only logged: the node works without it.
pub fn prepare(config: &Config) -> Result<(), Vec<Error>> {
    let mut errors = Vec::new();
    match Lock::take(&config.state_dir) {
        Ok(_lock) => prepare_for_agent(config, &mut errors),
        Err(lock::Error::Held(_)) if !config.clean_up_after.is_empty() => {
            info!("an agent runs here: only leftovers of other networks are removed");
        }
        Err(error @ lock::Error::Held(_)) => errors.push(error.into()),
        // No agent can run with this folder.
        Err(error @ lock::Error::StateDir { .. }) => {
            errors.push(error.into());
            prepare_for_agent(config, &mut errors);
        }
    }
    errors.extend(prepare_host(config).err());
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

/// Last, because the host's root folder is that of this process from then on.
fn prepare_host(config: &Config) -> Result<(), Error> {
    let is_new = network_managers::write(&config.host_root).unwrap_or_else(|error| {
        warn!("{error}");
        false
    });
    if !is_new && config.clean_up_after.is_empty() {
        return Ok(());
    }
    clean_up::enter(&config.host_root)?;
    if is_new {
        network_managers::reload();
    }
    let folder = config.cni_conf_dir.as_ref();
    let folder = folder.and_then(|it| it.strip_prefix(&config.host_root).ok());
    let folder = folder.map(|it| Path::new("/").join(it));
    let names = config.clean_up_after.iter();
    for network in names.filter_map(|name| table::by_name(name)) {
        if let Err(error) = clean_up::clean_up(network, folder.as_deref()) {
            warn!("{error}");
        }
    }
    Ok(())
}

fn prepare_for_agent(config: &Config, errors: &mut Vec<Error>) {
    let mut note = |done: Result<(), Error>| errors.extend(done.err());
    note(bpffs(config.pin_root.parent().unwrap_or(Path::new("/"))));
    cni_install::remove_damaged_results(config);
    note(load_datapath(config));
    note(copy_resolvers(config));
    if let Err(error) = write_key(config) {
        warn!(%error, "this node's paths are not probed");
    }
    #[cfg(feature = "kubernetes")]
    note(api_server::write(config, Path::new(API_SERVER_FILE)));
    let refused = sysctls::prepare_host(&config.state_dir);
    if refused.is_empty() {
        info!("IP forwarding is enabled (net.ipv4.ip_forward)");
    }
    errors.extend(refused.into_iter().map(Error::from));
    match create_tunnel() {
        Ok(refused) if refused.is_empty() => {
            info!(interface = ipip0::NAME, "the tunnel interface exists");
        }
        Ok(refused) => errors.extend(refused.into_iter().map(Error::from)),
        Err(error) => errors.push(error),
    }
    // A host whose /etc is read-only works without the rule.
    if let Some(Err(error)) = cni_install::Rule::of(config).map(|rule| rule.write()) {
        warn!(%error, "the CNI configuration stays valid over a boot: pods that start before the agent fail and are tried again");
    }
}

/// Loads the datapath, if the agent may not lock enough memory for it.
fn load_datapath(config: &Config) -> Result<(), Error> {
    if memory_is_limited() {
        let pins = Pins::new(&config.pin_root);
        let outcome = load(&pins, config.attach)?;
        info!(pins = %pins.version_dir().display(), ?outcome, "datapath loaded, because the agent may not lock enough memory");
    }
    Ok(())
}

/// Creates the tunnel interface and sets it up. Returns the kernel settings of it that cannot be changed.
fn create_tunnel() -> Result<Vec<sysctls::Error>, Error> {
    let mut netlink = Netlink::open()?;
    let mtu = netlink
        .link(ipip0::NAME)?
        .and_then(|link| link.mtu.try_into().ok());
    let mtu = mtu.unwrap_or(MTU);
    ipip0::create(&mut netlink, mtu)?;
    let refused = sysctls::prepare_tunnel(ipip0::FAR_END);
    ipip0::bring_up(&mut netlink, mtu)?;
    Ok(refused)
}

/// Copies the host's resolvers to a file for an agent that has no access to the host's files. An agent that has the same
/// settings reads the files themselves.
fn copy_resolvers(config: &Config) -> Result<(), Error> {
    let files = &config.resolver_files;
    if files.iter().any(|file| file == Path::new(RESOLVERS_FILE)) {
        return Ok(());
    }
    let found = resolvers::read(files);
    let text: String = found
        .iter()
        .map(|it| format!("nameserver {it}\n"))
        .collect();
    write(Path::new(RESOLVERS_FILE), &text)?;
    info!(resolvers = ?found, "resolvers copied");
    Ok(())
}

/// Writes the key of this node's probes for an agent that cannot write the folder; a new one after each boot.
fn write_key(config: &Config) -> Result<(), probe_key::Error> {
    let folder = probe_key::host_folder(&config.host_root);
    let key = probe_key::load_or_create(folder.as_ref().unwrap_or(&config.run_dir))?;
    probe_key::store(&key, &config.run_dir)?;
    info!(public = %key.public(), "this node has a key for probes");
    Ok(())
}

/// Writes a file for the agent.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    #[test]
    fn the_agent_reads_the_resolvers_that_prepare_copies() {
        let files = from_pairs("a1", &[]).resolver_files;
        assert!(files.iter().any(|it| it == Path::new(RESOLVERS_FILE)));
    }
}
