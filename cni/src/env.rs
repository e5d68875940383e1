//! The environment variables of a call (CNI specification, "Parameters").

use crate::{args::Args, attachment::Attachment, error::Error};
use ipip_netlink::is_link_name;
use std::{env, path::PathBuf};

/// The verb of a call. VERSION is not among them: it is answered before anything else is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Disconnect a container.
    Del,
    /// Compare a container with the result of ADD.
    Check,
    /// Remove the objects of containers that no longer exist.
    Gc,
    /// Report whether containers can be connected now.
    Status,
}

/// One interface of a container, and the parameters of the call.
#[derive(Clone, Debug)]
pub struct Container {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: Attachment,
    /// `CNI_NETNS`; optional for DEL.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Args,
}

impl Verb {
    /// Reads `CNI_COMMAND`; `None` stands for VERSION.
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
                    "CNI_COMMAND is not set: this is a CNI plugin, which a container runtime calls"
                        .into(),
                ]));
            }
        }))
    }
}

impl Container {
    /// Reads the variables that `verb` needs.
    ///
    /// # Errors
    /// Names every invalid variable, not only the first.
    pub fn read(verb: Verb) -> Result<Self, Error> {
        let mut wrong = Vec::new();
        let container_id = variable("CNI_CONTAINERID").unwrap_or_default();
        if !is_identifier(&container_id) {
            wrong.push(format!(
                "CNI_CONTAINERID is {container_id:?}: use letters, digits, '.', '_' and '-', the first a letter or digit"
            ));
        }
        let ifname = variable("CNI_IFNAME").unwrap_or_default();
        if !is_link_name(&ifname) {
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
        // DEL does not use the arguments, and must not fail because of a value that ADD accepted.
        let mut args = Args::default();
        if verb != Verb::Del {
            match Args::parse(&variable("CNI_ARGS").unwrap_or_default()) {
                Ok(parsed) => args = parsed,
                Err(error) => wrong.push(error.to_string()),
            }
        }
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

/// Whether the CNI specification allows `text` as a container ID or as the name of a network.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_that_the_specification_does_not_allow_are_refused() {
        for bad in ["", "-a", ".a", "a/b", "a b", "ä"] {
            assert!(!is_identifier(bad), "{bad}");
        }
        assert!(is_identifier("0123abc_def.g-h"));
    }
}
