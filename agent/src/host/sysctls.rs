//! The kernel settings without which packets do not pass.
//!
//! The state folder keeps the previous values of settings of the host and of uplinks, so that `uninstall` can restore
//! them. The settings of `ipip0` and of pods end with their interfaces.

use crate::{
    host::{ipip0, state},
    problems::{Problem, Reason},
    repairs::{self, Repair},
};
use ipip_netlink::{set_sysctl, sysctl};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Keys of settings whose previous values are kept begin with this; the file names are without it.
const IPV4: &str = "net.ipv4.";
/// The end of the name of a file with a previous value.
const BEFORE: &str = ".before";

const FORWARDING: &str = "pods have neither Services nor the Internet";
const IPV6: &str = "IPv6 packets, which the datapath drops, come from the interface";

/// A kernel setting and its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    /// As `sysctl` names it.
    key: String,
    value: &'static str,
    /// What happens with another value.
    otherwise: &'static str,
}

/// The interfaces that a group of settings is for. Each group is set as a whole.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// The whole host.
    Host,
    /// `ipip0` and its other end.
    Tunnel,
    /// The uplinks.
    Uplinks,
    /// The host's side of pods.
    Pods,
}

/// A setting is wrong and cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(
        "{source}; it is {found:?}, so {otherwise}; remedy: mount the host's /proc/sys/net writable at \
         /host/proc/sys/net as the manifests do, or run `sysctl -w {key}={value}` on the host"
    )]
    Refused {
        /// The setting.
        key: String,
        /// The value that it should have.
        value: &'static str,
        /// The value that it has; empty if it cannot be read.
        found: String,
        /// What happens with another value.
        otherwise: &'static str,
        /// The cause.
        source: Box<ipip_netlink::Error>,
    },
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// A previous value could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The kernel refused.
    #[error(transparent)]
    Refused(#[from] ipip_netlink::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] state::Error),
}

/// Keeps kernel settings, and knows which of them were right before.
#[derive(Debug)]
pub struct Sysctls {
    state_dir: PathBuf,
    groups: BTreeMap<Scope, Group>,
}

#[derive(Debug, Default)]
struct Group {
    /// The keys of the settings that are right.
    right: BTreeSet<String>,
    problems: Vec<Problem>,
}

/// What [`ensure`] found.
#[derive(Debug, Eq, PartialEq)]
enum Found {
    /// The right value.
    Right,
    /// This other value, which was replaced.
    Wrong(String),
    /// No such setting: the kernel has no IPv6, or the interface has just been removed.
    Absent,
}

/// The settings of the host.
pub fn of_host() -> Vec<Setting> {
    vec![Setting {
        key: format!("{IPV4}ip_forward"),
        value: "1",
        otherwise: FORWARDING,
    }]
}

/// The settings of `ipip0` and of its other end, `far_end`. Set before the interface is up, they keep even a router
/// solicitation from leaving it.
pub fn of_tunnel(far_end: &str) -> Vec<Setting> {
    let ipip0 = ipip0::NAME;
    vec![
        disable_ipv6(ipip0),
        disable_ipv6(far_end),
        forwarding(ipip0),
        // Loose mode (RFC 3704): a node of the same realm sends to pods through the tunnel with its InternalIP as
        // the source, but the route back to this InternalIP leads through the uplink. Of this value and that of
        // `all`, the larger one counts, so a strict filter for all interfaces does not matter here.
        of_interface(
            ipip0,
            "rp_filter",
            "2",
            "nodes of the same realm do not reach this node's pods",
        ),
        // A packet that leaves the tunnel and enters it again (a Service) has no better route to be redirected to.
        of_interface(
            ipip0,
            "send_redirects",
            "0",
            "the host sends ICMP redirects, which are wrong, into the tunnel",
        ),
    ]
}

/// The settings of an uplink. Its reverse-path filter may be strict: `from_uplink` takes packets of peers before the
/// filter sees them.
pub fn of_uplink(ifname: &str) -> Vec<Setting> {
    vec![forwarding(ifname)]
}

/// The settings of the host's side of a pod, as the CNI plugin sets them. Its reverse-path filter may be strict: the
/// pod's route leads back through it.
pub fn of_pod(ifname: &str) -> Vec<Setting> {
    vec![forwarding(ifname), disable_ipv6(ifname)]
}

/// Sets the settings of the host. Returns an error for each that is wrong and cannot be set.
pub fn prepare_host(state_dir: &Path) -> Vec<Error> {
    ensure_all(&of_host(), Some(state_dir))
}

/// Sets the settings of `ipip0` and of its other end. Returns an error for each that is wrong and cannot be set.
pub fn prepare_tunnel(far_end: &str) -> Vec<Error> {
    ensure_all(&of_tunnel(far_end), None)
}

/// Restores the values that settings had before the agent changed them. A setting that fails does not stop the others.
pub fn restore(state_dir: &Path) -> Vec<RestoreError> {
    let mut files = match files(state_dir) {
        Ok(files) => files,
        Err(error) => return vec![error.into()],
    };
    // A change of net.ipv4.ip_forward also changes the setting of each interface, so it goes first.
    files.sort_by_key(|path| path.file_name() != before(state_dir, &of_host()[0].key).file_name());
    files
        .iter()
        .filter_map(|path| restore_one(path).err())
        .collect()
}

impl Sysctls {
    /// Nothing is set yet.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            groups: BTreeMap::new(),
        }
    }

    /// Sets `wanted`, which are all settings of `scope`. Records a repair for each that was right before.
    pub fn ensure(&mut self, scope: Scope, wanted: &[Setting]) {
        let keep_in = matches!(scope, Scope::Host | Scope::Uplinks).then_some(&*self.state_dir);
        let earlier = self.groups.remove(&scope).unwrap_or_default();
        let mut group = Group::default();
        for setting in wanted {
            let Setting { key, value, .. } = setting;
            match ensure(setting, keep_in) {
                Ok(Found::Absent) => continue,
                Ok(Found::Right) => {}
                // The CNI plugin sets those of a pod before the agent sees it.
                Ok(Found::Wrong(found)) if scope == Scope::Pods || earlier.right.contains(key) => {
                    repairs::record(Repair::Sysctl, format!("{key}={value}, which was {found}"));
                }
                Ok(Found::Wrong(_)) => {}
                Err(error) => {
                    group
                        .problems
                        .push(Problem::new(Reason::KernelSetting, error));
                    continue;
                }
            }
            group.right.insert(key.clone());
        }
        self.groups.insert(scope, group);
    }

    /// Forgets which settings of `scope` were right, because its interfaces are new.
    pub fn forget(&mut self, scope: Scope) {
        self.groups.remove(&scope);
    }

    /// The settings that are wrong and cannot be set.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.groups.values().flat_map(|group| &group.problems)
    }
}

fn forwarding(ifname: &str) -> Setting {
    of_interface(ifname, "forwarding", "1", FORWARDING)
}

fn disable_ipv6(ifname: &str) -> Setting {
    Setting {
        key: format!("net.ipv6.conf.{ifname}.disable_ipv6"),
        value: "1",
        otherwise: IPV6,
    }
}

fn of_interface(ifname: &str, name: &str, value: &'static str, otherwise: &'static str) -> Setting {
    Setting {
        key: format!("{IPV4}conf.{ifname}.{name}"),
        value,
        otherwise,
    }
}

fn ensure_all(wanted: &[Setting], keep_in: Option<&Path>) -> Vec<Error> {
    let ensured = wanted.iter().map(|setting| ensure(setting, keep_in));
    ensured.filter_map(Result::err).collect()
}

/// Sets one setting, and keeps its previous value in the folder `keep_in`.
fn ensure(setting: &Setting, keep_in: Option<&Path>) -> Result<Found, Error> {
    let Setting {
        key,
        value,
        otherwise,
    } = setting;
    let refused = |found: &str, source| Error::Refused {
        key: key.clone(),
        value,
        found: found.into(),
        otherwise,
        source: Box::new(source),
    };
    let found = match sysctl(key) {
        Err(error) if error.is_not_found() => return Ok(Found::Absent),
        found => found.map_err(|source| refused("", source))?,
    };
    if found == *value {
        return Ok(Found::Right);
    }
    if let Some(folder) = keep_in {
        // Save before changing: a crash between the two must not lose the previous value.
        state::write(&before(folder, key), &found)?;
    }
    match set_sysctl(key, value) {
        Err(error) if error.is_not_found() => Ok(Found::Absent),
        set => set
            .map(|()| Found::Wrong(found.clone()))
            .map_err(|source| refused(&found, source)),
    }
}

/// The file with the previous value of a setting.
fn before(state_dir: &Path, key: &str) -> PathBuf {
    let name = key.strip_prefix(IPV4).unwrap_or(key);
    state_dir.join(format!("{name}{BEFORE}"))
}

fn files(state_dir: &Path) -> Result<Vec<PathBuf>, state::Error> {
    let names = state::names(state_dir)?;
    let kept = names.iter().filter(|name| name.ends_with(BEFORE));
    Ok(kept.map(|name| state_dir.join(name)).collect())
}

fn restore_one(path: &Path) -> Result<(), RestoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let key = format!("{IPV4}{}", name.trim_end_matches(BEFORE));
    if let Some(value) = state::read(path)? {
        match set_sysctl(&key, value.trim()) {
            // The interface no longer exists.
            Err(error) if error.is_not_found() => {}
            set => set?,
        }
    }
    Ok(state::remove(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_previous_value_is_found_by_its_files_name() {
        let folder = tempfile::tempdir().unwrap();
        let keys = ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.100.forwarding"];
        for key in keys {
            state::write(&before(folder.path(), key), "0").unwrap();
        }
        state::write(&folder.path().join("fou-sockets"), "").unwrap();
        let mut found = files(folder.path()).unwrap();
        found.sort();
        assert_eq!(
            found,
            [
                folder.path().join("conf.eth0.100.forwarding.before"),
                folder.path().join("ip_forward.before")
            ]
        );
    }
}
