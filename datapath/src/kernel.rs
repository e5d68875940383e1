//! The version of the running kernel.

pub use aya::util::KernelVersion;

/// The version of the running kernel. If it cannot be read, it counts as 0.0.0, so that no feature that
/// needs a minimum version is used.
pub fn kernel_version() -> KernelVersion {
    KernelVersion::current().unwrap_or(KernelVersion::new(0, 0, 0))
}
