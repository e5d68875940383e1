//! The program and the interface of a pinned TCX link.
//!
//! A query for an interface's programs returns only identifiers, and to open a program by its identifier takes
//! CAP_SYS_ADMIN (`BPF_PROG_GET_FD_BY_ID`), which an agent in a container lacks. A pinned link can be opened
//! without it, and describes itself. In aya 0.14, `LinkInfo` has no interface and `FdLink` does not lend its
//! descriptor, so this file calls bpf(2).

use nix::libc::{SYS_bpf, c_int, c_long, syscall};
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `enum bpf_cmd` of `linux/bpf.h`.
const BPF_OBJ_GET: c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;

/// `struct bpf_link_info` up to the end of its `tcx` part.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct TcxLink {
    kind: u32,
    id: u32,
    /// The identifier of the program that the link runs.
    pub program_id: u32,
    reserved: u32,
    /// The interface; 0 if it no longer exists.
    pub ifindex: u32,
    attach_type: u32,
}

/// The part of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

impl TcxLink {
    /// Reads the description of the link that is pinned at `path`.
    pub fn from_pin(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let fd = bpf(
            BPF_OBJ_GET,
            &ObjGet {
                pathname: path.as_ptr() as u64,
                bpf_fd: 0,
                file_flags: 0,
            },
        )?;
        // SAFETY: the kernel has just returned this descriptor, and no other value owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut link = Self::default();
        bpf(
            BPF_OBJ_GET_INFO_BY_FD,
            &GetInfo {
                bpf_fd: fd.as_raw_fd() as u32,
                info_len: size_of::<Self>() as u32,
                info: std::ptr::from_mut(&mut link) as u64,
            },
        )?;
        Ok(link)
    }
}

/// Calls bpf(2). Pointers in `attributes` must be valid for the sizes that `attributes` state.
fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_long> {
    let attributes: *const T = attributes;
    // SAFETY: `attributes` is valid for the size given, and the kernel reads the rest of its union as zeros.
    let result = unsafe { syscall(SYS_bpf, command, attributes, size_of::<T>()) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
