//! What the runtime tells in the environment.

use crate::{args::Args, attachment::Attachment, error::Error};
use std::{env, path::PathBuf};

/// What the runtime wants; VERSION is answered before anything else is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Undo that.
    Del,
    /// Is it still as ADD left it?
    Check,
    /// Remove what is left of containers that are no more.
    Gc,
    /// Can containers be connected now?
    Status,
}

/// One interface of a container, and what is said of it.
#[derive(Clone, Debug)]
pub struct Container {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: Attachment,
    /// `CNI_NETNS`; DEL may come without one.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Args,
}

impl Verb {
    /// From `CNI_COMMAND`; none for VERSION.
    pub fn read() -> Result<Option<Self>, Error> {
        Ok(Some(match variable("CNI_COMMAND").as_deref() {
            Some("ADD") => Self::Add,
            Some("DEL") => Self::Del,
            Some("CHECK") => Self::Check,
            Some("GC") => Self::Gc,
            Some("STATUS") => Self::Status,
            Some("VERSION") => return Ok(None),
            Some(other) => {
                return Err(Error::Environment(vec![format!(
                    "CNI_COMMAND is {other:?}: use ADD, DEL, CHECK, GC, STATUS or VERSION"
                )]));
            }
            None => {
                return Err(Error::Environment(vec![
                    "CNI_COMMAND is not set: this is a CNI plugin, to be called by a container runtime"
                        .into(),
                ]));
            }
        }))
    }
}

impl Container {
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
        // DEL needs nothing of them, and must not fail for what was taken once.
        let args = match verb {
            Verb::Del => Args::default(),
            _ => Args::parse(&variable("CNI_ARGS").unwrap_or_default()).unwrap_or_else(|error| {
                wrong.push(error.to_string());
                Args::default()
            }),
        };
        if wrong.is_empty() {
            Ok(Self {
                attachment: Attachment {
                    container_id,
                    ifname,
                },
                netns,
                args,
            })
        } else {
            Err(Error::Environment(wrong))
        }
    }
}

/// The folders of `CNI_PATH`.
pub fn plugin_folders() -> Result<Vec<PathBuf>, Error> {
    let path = variable("CNI_PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path)
        .filter(|folder| !folder.as_os_str().is_empty())
        .collect();
    if folders.is_empty() {
        return Err(Error::Environment(vec![
            "CNI_PATH is not set: give the folder with the IPAM plugin".into(),
        ]));
    }
    Ok(folders)
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
