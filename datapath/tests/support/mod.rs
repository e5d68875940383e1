//! What the running kernel can do.

use aya::util::KernelVersion;
use ipip_datapath::AttachMode;

/// The ways to attach that the running kernel has.
pub fn modes() -> Vec<AttachMode> {
    match at_least(6, 6) {
        true => vec![AttachMode::Tcx, AttachMode::Clsact],
        false => vec![AttachMode::Clsact],
    }
}

/// Whether the running kernel is of this version or a later one.
pub fn at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(major, minor, 0)
}
