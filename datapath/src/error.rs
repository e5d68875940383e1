//! What can go wrong with the pinned datapath.

use crate::KernelVersion;
use ipip_abi::Program;
use std::{io, path::PathBuf};

/// An operation on the datapath that failed, with the object that it concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No datapath is pinned below the pin root.
    #[error("no datapath is pinned at {}: start ipip-agent, or name another pin root", .0.display())]
    NotPinned(PathBuf),
    /// The pin root is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    /// A file or folder under the pins.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel rejected the object as a whole.
    #[error("cannot load the eBPF object: {0}")]
    Object(#[source] Box<aya::EbpfError>),
    /// The object lacks the program, or the program was not opened.
    #[error("there is no program {0}")]
    NoProgram(Program),
    /// One program: loading, opening or attaching.
    #[error("cannot {action} program {program}{}: {source}", on(ifname))]
    Program {
        /// The operation.
        action: &'static str,
        /// The program.
        program: Program,
        /// The interface, if the operation concerned one.
        ifname: Option<String>,
        /// The reason.
        source: Box<aya::programs::ProgramError>,
    },
    /// A pin of a program or a link.
    #[error("cannot pin {}: {source}", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: aya::pin::PinError,
    },
    /// A pinned link.
    #[error("cannot open link {}: {source}", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: aya::programs::links::LinkError,
    },
    /// A map: opening, reading or writing.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// The operation.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The reason.
        source: aya::maps::MapError,
    },
    /// A pinned map that has other sizes than this version expects.
    #[error(
        "pinned map {map} has {found}, this version expects {wanted}: remove the pins with `ipip-agent uninstall`"
    )]
    Layout {
        /// The map's name.
        map: &'static str,
        /// The sizes of the pinned map.
        found: String,
        /// The sizes of the ABI.
        wanted: String,
    },
    /// The word does not name an [`AttachMode`](crate::AttachMode).
    #[error("attach mode {0:?} is unknown: use auto, tcx or clsact")]
    AttachMode(String),
    /// The configuration asks for [`AttachMode::Tcx`](crate::AttachMode::Tcx), which the kernel lacks.
    #[error("attach mode tcx needs Linux 6.6 or newer, this is {0}: use auto or clsact")]
    NoTcx(KernelVersion),
    /// Several steps failed; all others were done.
    #[error("{}", list(.0))]
    Several(Vec<Error>),
}

fn on(ifname: &Option<String>) -> String {
    let ifname = ifname.as_ref();
    ifname.map_or_else(String::new, |ifname| format!(" on {ifname}"))
}

/// Several errors as one line.
fn list(errors: &[Error]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl From<aya::EbpfError> for Error {
    fn from(source: aya::EbpfError) -> Self {
        Self::Object(Box::new(source))
    }
}

impl Error {
    /// `Ok` if there are no errors, otherwise the one error or [`Error::Several`]. For undo and removal, which
    /// finish all steps before they fail.
    ///
    /// # Errors
    /// The errors that it was given.
    pub fn all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    pub(crate) fn program(
        action: &'static str,
        program: Program,
        ifname: Option<&str>,
    ) -> impl FnOnce(aya::programs::ProgramError) -> Self {
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
