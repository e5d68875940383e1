//! What can go wrong with the pinned datapath.

use aya::util::KernelVersion;
use std::{io, path::PathBuf};

/// An operation on the datapath that failed, with what it was done to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is pinned where a datapath was expected.
    #[error("no datapath is pinned at {}: start ipip-agent, or name another pin root", .0.display())]
    NotPinned(PathBuf),
    /// The pin root is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    /// A file or folder under the pins.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The object was refused as a whole.
    #[error("cannot load the eBPF object: {0}")]
    Object(#[source] Box<aya::EbpfError>),
    /// A program that the object should hold, or that was not opened.
    #[error("there is no program {0}")]
    NoProgram(&'static str),
    /// One program: loading, opening or attaching.
    #[error("cannot {action} program {program}{}: {source}", on(ifname))]
    Program {
        /// What was tried.
        action: &'static str,
        /// The program's name.
        program: String,
        /// The interface, where one was involved.
        ifname: Option<String>,
        /// The reason.
        source: Box<aya::programs::ProgramError>,
    },
    /// A pin of a program or a link.
    #[error("cannot pin {}: {source}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// The reason.
        source: aya::pin::PinError,
    },
    /// A pinned link.
    #[error("cannot open link {}: {source}", path.display())]
    Link {
        /// Where.
        path: PathBuf,
        /// The reason.
        source: aya::programs::links::LinkError,
    },
    /// A map: opening, reading or writing.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The reason.
        source: aya::maps::MapError,
    },
    /// A pinned map that is not as this version wants it.
    #[error(
        "pinned map {map} has {found}, this version wants {wanted}: remove the pins with `ipip-agent uninstall`"
    )]
    Layout {
        /// The map's name.
        map: &'static str,
        /// What is pinned.
        found: String,
        /// What the ABI says.
        wanted: String,
    },
    /// The word is no [`AttachMode`](crate::AttachMode).
    #[error("attach mode {0:?} is unknown: use auto, tcx or clsact")]
    AttachMode(String),
    /// [`AttachMode::Tcx`](crate::AttachMode::Tcx) was demanded of a kernel that lacks it.
    #[error("attach mode tcx needs Linux 6.6 or newer, this is {0}: use auto or clsact")]
    NoTcx(KernelVersion),
    /// Several steps of a removal failed; the others were done.
    #[error("{}", list(.0))]
    Several(Vec<Error>),
}

fn on(ifname: &Option<String>) -> String {
    ifname
        .as_ref()
        .map_or_else(String::new, |ifname| format!(" on {ifname}"))
}

fn list(errors: &[Error]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

impl From<aya::EbpfError> for Error {
    fn from(source: aya::EbpfError) -> Self {
        Self::Object(Box::new(source))
    }
}

impl Error {
    /// One error of many, none if there were none.
    pub(crate) fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    pub(crate) fn program(
        action: &'static str,
        program: &str,
        ifname: Option<&str>,
    ) -> impl FnOnce(aya::programs::ProgramError) -> Self {
        let program = program.to_owned();
        let ifname = ifname.map(str::to_owned);
        move |source| Self::Program {
            action,
            program,
            ifname,
            source: Box::new(source),
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
