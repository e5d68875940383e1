//! What the running kernel can do.

use aya::util::KernelVersion;
use ipip_datapath::AttachMode;

/// The ways to attach that the running kernel has.
pub fn modes() -> Vec<AttachMode> {
    match KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0) {
        true => vec![AttachMode::Tcx, AttachMode::Clsact],
        false => vec![AttachMode::Clsact],
    }
}
