//! Errors.

use netlink_packet_core::DecodeError;
use nix::errno::Errno;
use std::{io, path::PathBuf};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed attempt, with its object and the reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused a request.
    #[error("cannot {attempt}: {errno}{}", in_brackets(.reason))]
    Refused {
        /// What was attempted, with the object.
        attempt: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's message (extended acknowledgement), or empty.
        reason: String,
    },
    /// The netlink socket failed.
    #[error("cannot {attempt}: netlink socket: {source}")]
    Socket {
        /// What was attempted.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel's answer could not be parsed.
    #[error("cannot {attempt}: unexpected answer from the kernel: {source}")]
    Answer {
        /// What was attempted.
        attempt: String,
        /// The problem of the answer.
        source: DecodeError,
    },
    /// A table changed during every attempt to read it (`NLM_F_DUMP_INTR`).
    #[error("cannot {attempt}: the table changed during each of {times} reads")]
    DumpInterrupted {
        /// What was attempted.
        attempt: String,
        /// The number of attempts.
        times: u32,
    },
    /// A network namespace could not be used.
    #[error("cannot {attempt} the network namespace {}: {source}", path.display())]
    Namespace {
        /// What was attempted.
        attempt: &'static str,
        /// Path of the namespace.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file at a path is not a network namespace.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// A name that is not a file name under /run/netns.
    #[error(
        "network namespace name is {name:?}: use a non-empty name without '/', not '.' or '..'"
    )]
    NamespaceName {
        /// The name.
        name: String,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot {attempt} sysctl {key}: {source}")]
    Sysctl {
        /// What was attempted.
        attempt: &'static str,
        /// The setting.
        key: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The kernel's error number, if there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. }
            | Self::Namespace { source, .. }
            | Self::Sysctl { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Answer { .. }
            | Self::DumpInterrupted { .. }
            | Self::NotANamespace { .. }
            | Self::NamespaceName { .. } => None,
        }
    }

    /// Whether the object of the attempt does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(
                Errno::ENOENT | Errno::ESRCH | Errno::ENODEV | Errno::ENXIO | Errno::EADDRNOTAVAIL
            )
        )
    }

    /// Whether the object to be created exists already.
    pub fn is_already_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }
}

/// What was opened; `None` if the kernel does not have the protocol, for example no netfilter.
///
/// # Errors
/// It could not be opened for another reason.
pub fn if_supported<T>(opened: Result<T>) -> Result<Option<T>> {
    match opened {
        Err(error) if error.errno() == Some(Errno::EPROTONOSUPPORT) => Ok(None),
        opened => opened.map(Some),
    }
}

fn in_brackets(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(" ({reason})")
    }
}
