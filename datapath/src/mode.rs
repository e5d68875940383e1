//! The two ways to attach a program, and which of them the running kernel supports.

use crate::{Error, KernelVersion, kernel_version};
use std::{fmt, str::FromStr};

/// The first kernel with TCX.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AttachMode {
    /// TCX on Linux 6.6 and newer, where a new pod has clsact until it is promoted; clsact on older kernels.
    #[default]
    Auto,
    /// TCX links, also for new pods.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// The mode for a pod that is being added. Attaching by TCX waits for an RCU grace period and holds the kernel's
    /// lock on interfaces (RTNL) meanwhile. So with [`AttachMode::Auto`] a pod starts with clsact and is
    /// [promoted](crate::Programs::promote) later.
    pub fn at_first(self) -> Self {
        match self {
            Self::Auto => Self::Clsact,
            mode => mode,
        }
    }

    /// Whether the mode uses TCX on the running kernel.
    ///
    /// # Errors
    /// [`Error::NoTcx`] if the mode is TCX and the kernel lacks it.
    pub fn is_tcx(self) -> Result<bool, Error> {
        Ok(self.resolve()? == Self::Tcx)
    }

    /// The mode to use on the running kernel: [`AttachMode::Tcx`] or [`AttachMode::Clsact`].
    ///
    /// # Errors
    /// [`Error::NoTcx`] if the mode is TCX and the kernel lacks it.
    pub(crate) fn resolve(self) -> Result<Self, Error> {
        self.on(kernel_version())
    }

    fn on(self, kernel: KernelVersion) -> Result<Self, Error> {
        match self {
            Self::Tcx if kernel < TCX_SINCE => Err(Error::NoTcx(kernel)),
            Self::Auto if kernel < TCX_SINCE => Ok(Self::Clsact),
            Self::Auto => Ok(Self::Tcx),
            mode => Ok(mode),
        }
    }
}

impl FromStr for AttachMode {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "auto" => Ok(Self::Auto),
            "tcx" => Ok(Self::Tcx),
            "clsact" => Ok(Self::Clsact),
            other => Err(Error::AttachMode(other.to_owned())),
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: KernelVersion = KernelVersion::new(6, 5, 13);

    #[test]
    fn auto_is_tcx_from_linux_6_6_on_and_clsact_on_older_kernels() {
        let on = |kernel| AttachMode::Auto.on(kernel).unwrap();
        assert_eq!(on(OLD), AttachMode::Clsact);
        assert_eq!(on(TCX_SINCE), AttachMode::Tcx);
    }

    #[test]
    fn a_new_pod_does_not_wait_for_tcx_unless_the_mode_is_tcx() {
        let modes = [AttachMode::Auto, AttachMode::Tcx, AttachMode::Clsact];
        let at_first = [AttachMode::Clsact, AttachMode::Tcx, AttachMode::Clsact];
        assert_eq!(modes.map(AttachMode::at_first), at_first);
    }

    #[test]
    fn clsact_is_available_on_every_kernel() {
        for kernel in [OLD, TCX_SINCE] {
            let mode = AttachMode::Clsact.on(kernel).unwrap();
            assert_eq!(mode, AttachMode::Clsact);
        }
    }

    #[test]
    fn tcx_on_an_old_kernel_is_rejected_with_its_version_and_the_remedy() {
        let error = AttachMode::Tcx.on(OLD).unwrap_err().to_string();
        assert_eq!(
            error,
            "attach mode tcx needs Linux 6.6 or newer, this is 6.5.13: use auto or clsact"
        );
    }
}
