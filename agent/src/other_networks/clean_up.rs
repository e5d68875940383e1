//! Removes what another pod network has left on this host. What is gone already is no error.

use super::{
    firewall,
    found::{Found, Host, description},
    remove_tree,
    table::{self, Network},
};
use crate::host_programs::run;
use ipip_netlink::{LinkChange, Netlink};
use std::{
    fs, io,
    os::unix,
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// The folders of CNI configurations of kubeadm and of distributions that have their own.
const CONFIGURATIONS: &[&str] = &[
    "/etc/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/lib/rancher/rke2/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];

/// What a disabled CNI configuration ends with.
const DISABLED: &str = ".ipip-bak";

/// The host could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Pods of the network still run.
    #[error(
        "{network}: {count} pods of this network run on this host (interfaces {interfaces}), so nothing is removed; remedy: delete them, so that they start in the new network, and run this again"
    )]
    Pods {
        /// The network.
        network: &'static str,
        /// Their number.
        count: usize,
        /// The interfaces of some of them.
        interfaces: String,
    },
    /// Reading or changing links, routes or rules failed.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The host's files cannot be reached.
    #[error(
        "hostRoot: cannot enter {path}: {source}; remedy: run it privileged, with the host's / mounted there"
    )]
    Root {
        /// The folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Parts could not be removed.
    #[error("{network}: not everything is removed: {}; remedy: run it as root of the host, or remove the rest by hand", errors.join("; "))]
    Rest {
        /// The network.
        network: &'static str,
        /// The failures.
        errors: Vec<String>,
    },
}

/// Makes the host's root folder that of this process, so that the host's files and programs are at their own paths.
pub fn enter(root: &Path) -> Result<(), Error> {
    if root == Path::new("/") {
        return Ok(());
    }
    unix::fs::chroot(root)
        .and_then(|()| std::env::set_current_dir("/"))
        .map_err(|source| Error::Root {
            path: root.to_owned(),
            source,
        })
}

/// Removes what `network` has left, and logs each part. `folder` is that of the CNI configurations, beside those of
/// distributions.
///
/// # Errors
/// Pods of the network still run (then nothing is removed), or the parts that could not be removed.
pub fn clean_up(network: &'static Network, folder: Option<&Path>) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut errors = Vec::new();
    let mut removed = remove_from_kernel(&mut netlink, network, &mut errors)?;
    removed.extend(firewall::remove(network, &mut errors));
    removed.extend(remove_programs(&mut netlink, network, &mut errors));
    for folder in CONFIGURATIONS.iter().map(Path::new).chain(folder) {
        removed.extend(disable(folder, network, &mut errors));
    }
    for path in network.files.iter().chain(network.pins) {
        removed.extend(remove_files(Path::new(path), &mut errors));
    }
    for what in &removed {
        info!(network = network.name, "removed: {what}");
    }
    if removed.is_empty() && errors.is_empty() {
        info!(network = network.name, "nothing of this network is left");
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Error::Rest {
        network: network.name,
        errors,
    })
}

fn remove_from_kernel(
    netlink: &mut Netlink,
    network: &'static Network,
    errors: &mut Vec<String>,
) -> Result<Vec<String>, Error> {
    let (links, addresses) = (netlink.links()?, netlink.addresses()?);
    let (routes, rules) = (netlink.routes()?, netlink.rules()?);
    let host = Host {
        links: &links,
        addresses: &addresses,
        routes: &routes,
        rules: &rules,
        pins: &[],
    };
    let found = Found::on(host, network, true);
    if !found.pods.is_empty() {
        let names = found.pods.iter().take(3).map(|link| link.name.as_str());
        return Err(Error::Pods {
            network: network.name,
            count: found.pods.len(),
            interfaces: names.collect::<Vec<_>>().join(", "),
        });
    }
    let mut removed = Vec::new();
    let mut note = |what: String, done: ipip_netlink::Result<()>| match done {
        Ok(()) => removed.push(what),
        Err(error) if error.is_not_found() => {}
        Err(error) => errors.push(format!("{what}: {error}")),
    };
    for rule in &found.rules {
        let what = format!("rule {} to table {}", rule.priority, rule.table);
        note(what, netlink.delete_rule(rule));
    }
    for route in &found.routes {
        let what = format!("route {}", description(route, host));
        note(what, netlink.delete_route(route));
    }
    for link in &found.links {
        let what = format!("interface {}", link.name);
        if link.name != "tunl0" {
            note(what, netlink.delete_link(link.index));
            continue;
        }
        // The kernel made it and keeps it. Without an address it is as it was.
        for address in addresses.iter().filter(|it| it.index == link.index) {
            let done = netlink.delete_address(link.index, address.network);
            note(format!("address {} of tunl0", address.network), done);
        }
        let down = LinkChange {
            up: Some(false),
            ..LinkChange::default()
        };
        note(
            "state UP of tunl0".into(),
            netlink.change_link(link.index, &down),
        );
    }
    Ok(removed)
}

/// Removes the network's programs that `tc` has attached. Those attached by links end with their pins.
fn remove_programs(
    netlink: &mut Netlink,
    network: &Network,
    errors: &mut Vec<String>,
) -> Vec<String> {
    if network.programs.is_empty() {
        return Vec::new();
    }
    let links = netlink.links().unwrap_or_default();
    let mut removed = Vec::new();
    for link in links {
        for side in ["ingress", "egress"] {
            let shown = match run("tc", &["filter", "show", "dev", &link.name, side], "") {
                Ok(shown) => shown,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    warn!(
                        "this host has no program tc: filters of {} are not sought",
                        network.name
                    );
                    return removed;
                }
                Err(_) => continue,
            };
            for (preference, handle, program) in filters(&shown, network) {
                let what = format!("program {program} ({side} of {})", link.name);
                let arguments = [
                    "filter", "del", "dev", &link.name, side, "pref", preference, "handle", handle,
                    "bpf",
                ];
                match run("tc", &arguments, "") {
                    Ok(_) => removed.push(what),
                    Err(error) => errors.push(format!("{what}: {error}")),
                }
            }
        }
    }
    removed
}

/// Preference, handle and program of each of the network's filters in the output of `tc filter show`.
fn filters<'a>(shown: &'a str, network: &Network) -> Vec<(&'a str, &'a str, &'a str)> {
    let filter = |line: &'a str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word| {
            words
                .iter()
                .position(|it| *it == word)
                .and_then(|at| words.get(at + 1))
        };
        let at = words.iter().position(|it| *it == "handle")?;
        let program = words.get(at + 2)?;
        table::matches(network.programs, program).then_some((
            *after("pref")?,
            *after("handle")?,
            *program,
        ))
    };
    shown.lines().filter_map(filter).collect()
}

/// Renames the network's CNI configurations, so that runtimes no longer find them.
fn disable(folder: &Path, network: &Network, errors: &mut Vec<String>) -> Vec<String> {
    let mut done = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !table::matches(network.configurations, &name) || name.ends_with(DISABLED) {
            continue;
        }
        let (from, to) = (entry.path(), folder.join(format!("{name}{DISABLED}")));
        match fs::rename(&from, &to) {
            Ok(()) => done.push(format!("{} (now {})", from.display(), to.display())),
            Err(error) => errors.push(format!("{}: {error}", from.display())),
        }
    }
    done
}

/// Removes a file or folder; a `*` at the end of its name stands for any text.
fn remove_files(path: &Path, errors: &mut Vec<String>) -> Vec<String> {
    let (folder, pattern) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    );
    let (Some(folder), Some(pattern)) = (folder, pattern) else {
        return Vec::new();
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !table::matches(&[pattern], &entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        if remove_tree::remove(&path, errors) {
            removed.push(path.display().to_string());
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_renamed_once_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10-flannel.conflist", "10-ipip.conflist", "00-multus.conf"] {
            fs::write(folder.path().join(name), "{}").unwrap();
        }
        let flannel = table::by_name("flannel").unwrap();
        let mut errors = Vec::new();
        assert_eq!(disable(folder.path(), flannel, &mut errors).len(), 1);
        assert_eq!(disable(folder.path(), flannel, &mut errors).len(), 0);
        assert!(errors.is_empty(), "{errors:?}");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "00-multus.conf",
                "10-flannel.conflist.ipip-bak",
                "10-ipip.conflist"
            ]
        );
    }

    #[test]
    fn files_and_folders_are_removed_by_pattern() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("cilium_calls")).unwrap();
        fs::write(folder.path().join("cilium_lxc"), "").unwrap();
        fs::write(folder.path().join("ours"), "").unwrap();
        let mut errors = Vec::new();
        let removed = remove_files(&folder.path().join("cilium_*"), &mut errors);
        assert_eq!((removed.len(), errors.len()), (2, 0));
        assert!(folder.path().join("ours").exists());
    }

    #[test]
    fn filters_are_recognised_by_the_name_of_their_program() {
        let shown = "
filter protocol all pref 1 bpf chain 0
filter protocol all pref 1 bpf chain 0 handle 0x1 cil_from_netdev-eth0 direct-action not_in_hw id 42 tag 3b
filter protocol all pref 2 bpf chain 0 handle 0x1 from_uplink direct-action not_in_hw id 43
";
        let cilium = table::by_name("cilium").unwrap();
        assert_eq!(
            filters(shown, cilium),
            [("1", "0x1", "cil_from_netdev-eth0")]
        );
    }
}
