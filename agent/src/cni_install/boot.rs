//! After a boot, bpffs is empty, but the list in `/etc` is still there. A kubelet that finds it reports Ready and starts
//! pods before the datapath exists.
//!
//! systemd-tmpfiles makes the list invalid early in the boot, before any runtime starts. The file stays, because
//! containerd uses the next file in its place only if it is absent. A symbolic link into `/run` would do without
//! systemd, but programs in containers, such as service meshes and Multus, mount only the folder of the list, so they
//! could not read it. Without systemd, the agent makes the list invalid when it starts and no datapath is pinned.

use super::{Error, file, foreign, keep_copy, list_path, others, remove};
use crate::config::Config;
use std::path::{Path, PathBuf};
use tracing::info;

/// The file with our rule, below the host's root.
const RULE: &str = "etc/tmpfiles.d/ipip.conf";
/// Exists if systemd is the host's service manager.
const SYSTEMD: &str = "run/systemd/system";

/// What an invalid list says.
const INVALID: &str = "ipip-agent restores this file when the datapath is ready.";

/// The rule of systemd-tmpfiles that makes the list invalid at boot.
#[derive(Debug)]
pub struct Rule {
    path: PathBuf,
    text: String,
}

impl Rule {
    /// The rule of this host; none if the agent writes no list, or if the host has no systemd.
    pub fn of(config: &Config) -> Option<Self> {
        let list = list_path(config)?;
        // The path as the host has it.
        let list = Path::new("/").join(list.strip_prefix(&config.host_root).ok()?);
        config.host_root.join(SYSTEMD).exists().then(|| Self {
            path: config.host_root.join(RULE),
            text: format!(
                "# After a boot there is no network until ipip-agent has restored the datapath.\nw! {} - - - - {INVALID}\n",
                list.display()
            ),
        })
    }

    /// Writes the rule if it differs.
    pub fn write(&self) -> Result<(), Error> {
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).map_err(super::failed("create folder", folder))?;
        }
        if file::replace(&self.path, self.text.as_bytes(), 0o644)? {
            info!(path = %self.path.display(), "a boot makes the CNI configuration invalid");
        }
        Ok(())
    }

    /// Removes the rule.
    pub fn remove(&self) -> Result<(), Error> {
        remove(&self.path)
    }
}

/// Makes the list invalid if no datapath is pinned: pods could not be added. Plugins of others are remembered.
pub fn withdraw_after_boot(config: &Config) -> Result<(), Error> {
    let Some(path) = list_path(config) else {
        return Ok(());
    };
    if config.pin_root.exists() || !path.exists() {
        return Ok(());
    }
    if let Some(list) = others::read(&path).filter(foreign::is_ours) {
        keep_copy(config, &list)?;
    }
    if file::replace(&path, INVALID.as_bytes(), 0o644)? {
        info!(path = %path.display(), "CNI configuration is invalid until the datapath is ready");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;
    use std::fs;

    fn host() -> (tempfile::TempDir, Config) {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path).display().to_string();
        let config = from_pairs(
            "a1",
            &[
                ("hostRoot", &at("")),
                ("cniConfDir", &at("etc/cni/net.d")),
                ("stateDir", &at("state")),
                ("pinRoot", &at("pins")),
            ],
        );
        fs::create_dir_all(root.path().join("etc/cni/net.d")).unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        (root, config)
    }

    #[test]
    fn a_host_with_systemd_makes_the_list_invalid_at_boot_under_its_own_path() {
        let (root, config) = host();
        assert!(Rule::of(&config).is_none(), "without systemd");
        fs::create_dir_all(root.path().join(SYSTEMD)).unwrap();
        let rule = Rule::of(&config).unwrap();
        rule.write().unwrap();
        let text = fs::read_to_string(root.path().join(RULE)).unwrap();
        let line = text.lines().last().unwrap();
        let wanted = format!("w! /etc/cni/net.d/01-ipip.conflist - - - - {INVALID}");
        assert_eq!(line, wanted);
        rule.remove().unwrap();
        assert!(!root.path().join(RULE).exists());
    }

    #[test]
    fn a_list_without_a_datapath_is_made_invalid_and_plugins_of_others_are_remembered() {
        let (root, config) = host();
        let list = list_path(&config).unwrap();
        let text = r#"{"name":"ipip","plugins":[{"type":"ipip"},{"type":"logger"}]}"#;
        fs::write(&list, text).unwrap();
        fs::create_dir(root.path().join("pins")).unwrap();
        withdraw_after_boot(&config).unwrap();
        assert_eq!(
            fs::read_to_string(&list).unwrap(),
            text,
            "the datapath is pinned"
        );
        fs::remove_dir(root.path().join("pins")).unwrap();
        withdraw_after_boot(&config).unwrap();
        assert_eq!(fs::read_to_string(&list).unwrap(), INVALID);
        let copy = others::read(&config.state_dir.join(super::super::COPY)).unwrap();
        assert_eq!(copy["plugins"][1]["type"], "logger");
    }
}
