//! What the runtime tells in the environment.

use crate::error::Error;
use sha2::{Digest, Sha256};
use std::{env, fmt::Write, path::PathBuf};

/// What the runtime wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Undo that.
    Del,
    /// Is it still as ADD left it?
    Check,
    /// Which versions are spoken?
    Version,
}

/// The container, and where plugins are.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; DEL may come without one.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`: the interface in the container.
    pub ifname: String,
    /// The folders of `CNI_PATH`.
    pub plugin_folders: Vec<PathBuf>,
}

impl Verb {
    /// From `CNI_COMMAND`.
    pub fn read() -> Result<Self, Error> {
        match variable("CNI_COMMAND").as_deref() {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("VERSION") => Ok(Self::Version),
            Some(other) => Err(Error::Environment(vec![format!(
                "CNI_COMMAND is {other:?}: use ADD, DEL, CHECK or VERSION"
            )])),
            None => Err(Error::Environment(vec![
                "CNI_COMMAND is not set: this is a CNI plugin, to be called by a container runtime"
                    .into(),
            ])),
        }
    }
}

impl Environment {
    /// Reads it, and names everything in it that `verb` cannot work with.
    pub fn read(verb: Verb) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let container_id = variable("CNI_CONTAINERID").unwrap_or_default();
        if !is_identifier(&container_id) {
            wrong.push(format!(
                "CNI_CONTAINERID is {container_id:?}: use letters, digits, '.', '_' and '-', the first a letter or digit"
            ));
        }
        let ifname = variable("CNI_IFNAME").unwrap_or_default();
        if !is_ifname(&ifname) {
            wrong.push(format!(
                "CNI_IFNAME is {ifname:?}: use 1 to 15 bytes without '/', ':' and spaces, not '.' or '..'"
            ));
        }
        let netns = variable("CNI_NETNS").map(PathBuf::from);
        if netns.is_none() && verb != Verb::Del {
            wrong.push(
                "CNI_NETNS is not set: give the path of the container's network namespace".into(),
            );
        }
        let path = variable("CNI_PATH").unwrap_or_default();
        let plugin_folders: Vec<_> = env::split_paths(&path)
            .filter(|folder| !folder.as_os_str().is_empty())
            .collect();
        if plugin_folders.is_empty() {
            wrong.push("CNI_PATH is not set: give the folder with the IPAM plugin".into());
        }
        if wrong.is_empty() {
            Ok(Self {
                container_id,
                netns,
                ifname,
                plugin_folders,
            })
        } else {
            Err(Error::Environment(wrong))
        }
    }

    /// Name of the host side of the veth: the same at each call, and another for each attachment.
    pub fn host_ifname(&self) -> String {
        let digest = Sha256::new()
            .chain_update(&self.container_id)
            .chain_update([0])
            .chain_update(&self.ifname)
            .finalize();
        let mut name = String::from("pod");
        for byte in &digest[..6] {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name.truncate(14);
        name
    }
}

/// Whether `text` is what the specification takes for a container ID or the name of a network.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn is_ifname(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace())
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(container_id: &str, ifname: &str) -> Environment {
        Environment {
            container_id: container_id.into(),
            netns: None,
            ifname: ifname.into(),
            plugin_folders: Vec::new(),
        }
    }

    #[test]
    fn the_host_side_has_its_own_name_for_each_attachment_and_keeps_it() {
        let name = environment("a1", "eth0").host_ifname();
        assert_eq!(name, "pod8be2841074b");
        assert_eq!(name.len(), 14);
        assert_ne!(name, environment("a1", "eth1").host_ifname());
        // The ID and the interface are not run together.
        assert_ne!(
            environment("a", "beth0").host_ifname(),
            environment("ab", "eth0").host_ifname()
        );
    }

    #[test]
    fn names_that_the_kernel_or_the_specification_refuses_are_refused() {
        for good in ["eth0", "eth0.100", "a"] {
            assert!(is_ifname(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "sixteen-bytes-xx",
        ] {
            assert!(!is_ifname(bad), "{bad}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "ä"] {
            assert!(!is_identifier(bad), "{bad}");
        }
        assert!(is_identifier("0123abc_def.g-h"));
    }
}
