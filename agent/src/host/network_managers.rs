//! Drop-ins that keep systemd-networkd and NetworkManager away from `ipip0` and the interfaces of pods. Without them a
//! `.network` file that matches every interface configures pods' interfaces too, and a restart of networkd deletes
//! routes that it does not know.
//!
//! They are in `/run`: the next boot starts without them, and `prepare` writes them again.

use crate::{
    files::{self, absent_is_fine},
    host_programs::run,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// A drop-in of a network manager.
struct DropIn {
    /// Exists while this manager runs.
    runs: &'static str,
    /// The file.
    path: &'static str,
    content: &'static str,
    /// The command that makes the manager read it.
    reload: &'static [&'static str],
}

const DROP_INS: &[DropIn] = &[
    DropIn {
        runs: "/run/systemd/netif",
        // The first file by name that matches an interface counts.
        path: "/run/systemd/network/00-ipip.network",
        content: "# Written by ipip-agent: these interfaces are its own.
[Match]
Name=ipip0 ipip0-far pod????????????

[Link]
Unmanaged=yes
",
        reload: &["networkctl", "reload"],
    },
    DropIn {
        runs: "/run/systemd/netif",
        path: "/run/systemd/networkd.conf.d/ipip.conf",
        // The route that rejects unused pod addresses has no interface. Read at the next start.
        content: "# Written by ipip-agent: networkd would delete the agent's routes when it starts.
[Network]
ManageForeignRoutes=no
ManageForeignRoutingPolicyRules=no
",
        reload: &[],
    },
    DropIn {
        runs: "/run/NetworkManager",
        path: "/run/NetworkManager/conf.d/00-ipip.conf",
        content: "# Written by ipip-agent: these interfaces are its own.
[keyfile]
unmanaged-devices+=interface-name:ipip0;interface-name:ipip0-far;interface-name:pod????????????
",
        reload: &["nmcli", "general", "reload", "conf"],
    },
];

/// A drop-in cannot be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}; remedy: correct hostRoot, or run it as root")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes the drop-ins of the managers that run on the host, whose root folder is `root`. Returns whether any was
/// written.
pub fn write(root: &Path) -> Result<bool, Error> {
    let mut any = false;
    for drop_in in DROP_INS {
        let path = below(root, drop_in.path);
        let is_there = || fs::read_to_string(&path).is_ok_and(|text| text == drop_in.content);
        if !below(root, drop_in.runs).exists() || is_there() {
            continue;
        }
        let parent = path.parent().unwrap_or(root);
        fs::create_dir_all(parent)
            .and_then(|()| files::replace(&path, drop_in.content.as_bytes(), 0o644))
            .map_err(failed("write", &path))?;
        info!(path = %drop_in.path, "the network manager leaves interfaces of ipip alone");
        any = true;
    }
    Ok(any)
}

/// Makes the managers read the drop-ins. The host's root folder must be that of this process. A manager that does not
/// answer reads them at its next start.
pub fn reload() {
    let commands = DROP_INS.iter().filter(|it| Path::new(it.path).exists());
    for command in commands.map(|it| it.reload) {
        let Some((program, arguments)) = command.split_first() else {
            continue;
        };
        if let Err(error) = run(program, arguments, "") {
            warn!(%error, "`{}` failed: drop-ins in /run have effect after the manager's next start", command.join(" "));
        }
    }
}

/// Removes the drop-ins.
pub fn remove(root: &Path) -> Result<(), Error> {
    for drop_in in DROP_INS {
        let path = below(root, drop_in.path);
        absent_is_fine(fs::remove_file(&path)).map_err(failed("remove", &path))?;
    }
    Ok(())
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ipip0;

    #[test]
    fn only_managers_that_run_get_drop_ins_and_removal_takes_them_away() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run/NetworkManager")).unwrap();
        assert!(write(root.path()).unwrap());
        assert!(!write(root.path()).unwrap(), "nothing is written twice");
        let written = root.path().join("run/NetworkManager/conf.d/00-ipip.conf");
        assert!(fs::read_to_string(&written).unwrap().contains(ipip0::NAME));
        assert!(!root.path().join("run/systemd").exists());
        remove(root.path()).unwrap();
        remove(root.path()).unwrap();
        assert!(!written.exists());
    }

    #[test]
    fn the_drop_ins_name_the_interfaces_that_agent_and_plugin_create() {
        for drop_in in DROP_INS.iter().filter(|it| it.content.contains("pod?")) {
            for name in [ipip0::NAME, ipip0::FAR_END, "pod????????????"] {
                assert!(drop_in.content.contains(name), "{} {name}", drop_in.path);
            }
        }
    }
}
