//! Features of the running kernel.

use ipip_datapath::{AttachMode, KernelVersion, kernel_version};

/// The attach modes that the running kernel supports.
pub fn modes() -> Vec<AttachMode> {
    if at_least(6, 6) {
        vec![AttachMode::Tcx, AttachMode::Clsact]
    } else {
        vec![AttachMode::Clsact]
    }
}

/// Whether the running kernel is of this version or a later one.
pub fn at_least(major: u8, minor: u8) -> bool {
    kernel_version() >= KernelVersion::new(major, minor, 0)
}
