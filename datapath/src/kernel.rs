//! Which kernel runs.

pub use aya::util::KernelVersion;

/// The version of the running kernel. A kernel that does not state one counts as 0.0.0, older than all, because
/// features are used only from a known version on.
pub fn kernel_version() -> KernelVersion {
    KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0))
}
