//! BPF links, detached from outside as `bpftool link detach` does. aya can only close them.

use nix::libc;
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_OBJ_GET` of linux/bpf.h.
const GET: libc::c_long = 7;
/// `BPF_LINK_DETACH`.
const DETACH: libc::c_long = 34;

/// The attributes of [`GET`].
#[repr(C)]
struct GetAttributes {
    path: u64,
    _descriptor: u32,
    flags: u32,
}

/// The attributes of [`DETACH`].
#[repr(C)]
struct DetachAttributes {
    link: u32,
}

/// Detaches the link that is pinned at `path`. The pin stays.
///
/// # Errors
/// The kernel's error, with the path.
pub fn detach(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let at = |error: io::Error| {
        let text = format!("cannot detach the link {}: {error}", path.display());
        io::Error::new(error.kind(), text)
    };
    let pinned = GetAttributes {
        path: name.as_ptr().addr() as u64,
        _descriptor: 0,
        flags: 0,
    };
    let link = bpf(GET, &pinned).map_err(at)?;
    // SAFETY: the call has just returned this descriptor, which nothing else owns.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let attributes = DetachAttributes {
        link: link.as_raw_fd().cast_unsigned(),
    };
    bpf(DETACH, &attributes).map(drop).map_err(at)
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `attributes`, which has the layout of this command in `union bpf_attr`, for its size.
    // The path in it lives as long as the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match i32::try_from(done) {
        Ok(done) if done >= 0 => Ok(done),
        _ => Err(io::Error::last_os_error()),
    }
}
