//! Errors of the pinned datapath.

use crate::KernelVersion;
use ipip_abi::Program;
use std::{fmt, io, iter::successors, path::PathBuf};

/// An operation on the datapath that failed, with the object that it concerned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No datapath is pinned below the pin root.
    #[error("no datapath is pinned at {}: start ipip-agent, or name another pin root", .0.display())]
    NotPinned(PathBuf),
    /// The datapath belongs to another ABI version.
    #[error(
        "the datapath at {} is of ABI version {found}, and this program is of version {own}; remedy: use programs of one version: a running ipip-agent takes the datapath over and, with cniBinSource, installs its CNI plugin within seconds; otherwise install the plugin of the agent's version", root.display()
    )]
    OtherVersion {
        /// The pin root.
        root: PathBuf,
        /// The version whose programs are attached.
        found: u32,
        /// The version of this program.
        own: u32,
    },
    /// The pin root is not on a BPF file system.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", .0.display())]
    NotBpffs(PathBuf),
    /// The folder of the pins is on a BPF file system but may not be written.
    #[error(
        "cannot make folder {}: {source}; remedy: in a container, set appArmorProfile Unconfined and seLinuxOptions type spc_t as the manifests do, and mount bpffs writable", path.display()
    )]
    Forbidden {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel or a filter of system calls refuses bpf(2).
    #[error(
        "the kernel refuses bpf(2): {}; remedy: give the process the capabilities BPF, NET_ADMIN and PERFMON, in a container also seLinuxOptions type spc_t and a seccompProfile that allows bpf(2) with BPF (CRI-O before 1.31: Unconfined); before Linux 5.11 also run `ipip-agent prepare` as root, or raise RLIMIT_MEMLOCK", chain(.0.as_ref())
    )]
    NotPermitted(#[source] Box<aya::EbpfError>),
    /// An operation on a file or folder of the pins failed.
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
    /// An operation on one program failed, such as loading, opening or attaching it.
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
    /// A program or a link could not be pinned.
    #[error("cannot pin {}: {source}", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: aya::pin::PinError,
    },
    /// A pinned link could not be opened.
    #[error("cannot open link {}: {source}", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: aya::programs::links::LinkError,
    },
    /// A map could not be opened, read or written.
    #[error("cannot {action} map {map}: {source}")]
    Map {
        /// The operation.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The reason.
        source: aya::maps::MapError,
    },
    /// A pinned map has other sizes than this version expects.
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
    #[error(transparent)]
    Several(#[from] ErrorList<Error>),
}

fn on(ifname: &Option<String>) -> String {
    let ifname = ifname.as_ref();
    ifname.map_or_else(String::new, |ifname| format!(" on {ifname}"))
}

/// The errors of several steps, shown in one line. Rollback and removal use it, because they try all steps before
/// they fail.
#[derive(Debug)]
pub struct ErrorList<E>(pub Vec<E>);

impl<E: fmt::Display> fmt::Display for ErrorList<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl<E: std::error::Error> std::error::Error for ErrorList<E> {}

impl<E: From<Self>> ErrorList<E> {
    /// `Ok` if the list is empty, otherwise its only error or the list as one error.
    ///
    /// # Errors
    /// The errors of the list.
    pub fn into_result(mut self) -> Result<(), E> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(E::from(self)),
        }
    }
}

/// An error and its causes in one line. A cause that the text already has is left out, because many errors state
/// their cause themselves.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl From<aya::EbpfError> for Error {
    fn from(source: aya::EbpfError) -> Self {
        if is_refusal(&source) {
            Self::NotPermitted(Box::new(source))
        } else {
            Self::Object(Box::new(source))
        }
    }
}

/// Whether a cause of the error is that something is not permitted.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = successors(error.source(), |&cause| cause.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    })
}

impl Error {
    /// Whether the kernel refused an operation that needs more rights or a higher limit.
    pub(crate) fn is_refusal(&self) -> bool {
        is_refusal(self)
    }

    /// The result of several steps, with the errors of those that failed.
    pub(crate) fn all(errors: Vec<Self>) -> Result<(), Self> {
        ErrorList(errors).into_result()
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

#[cfg(test)]
mod tests {
    use super::*;
    use aya::maps::MapError;

    #[test]
    fn an_error_states_each_cause_once() {
        let error = Error::io("read", "/x")(io::Error::from_raw_os_error(5));
        assert_eq!(
            chain(&error),
            "cannot read /x: Input/output error (os error 5)"
        );
        let hidden = MapError::CreateError {
            name: "PODS".to_owned(),
            io_error: io::Error::from_raw_os_error(5),
        };
        assert_eq!(
            chain(&hidden),
            "failed to create map `PODS`: Input/output error (os error 5)"
        );
    }

    #[test]
    fn a_forbidden_pin_folder_names_the_security_modules_as_remedy() {
        let text = chain(&Error::Forbidden {
            path: "/sys/fs/bpf/ipip".into(),
            source: io::Error::from_raw_os_error(13),
        });
        assert_eq!(text.matches("os error 13").count(), 1, "{text}");
        for name in ["appArmorProfile", "spc_t", "bpffs"] {
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn a_refused_bpf_call_names_capabilities_and_profiles_as_remedy() {
        let refused = aya::EbpfError::from(MapError::CreateError {
            name: "PODS".to_owned(),
            io_error: io::Error::from_raw_os_error(1),
        });
        let text = chain(&Error::from(refused));
        assert!(text.contains("PODS"), "{text}");
        assert!(
            text.contains("remedy") && text.contains("seccompProfile"),
            "{text}"
        );
        assert_eq!(text.matches("os error 1").count(), 1, "{text}");
    }
}
