//! What a pinned TCX link tells of itself.
//!
//! To ask an interface which programs it has, and then who they are, takes CAP_SYS_ADMIN
//! (`BPF_PROG_GET_FD_BY_ID`), which an agent in a container has not. A link that one may open tells
//! the same of itself.

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

/// Where a TCX link is attached: `struct bpf_link_info`, as far as its `tcx` part goes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct TcxLink {
    kind: u32,
    id: u32,
    /// The ID of the program that it runs.
    pub program_id: u32,
    reserved: u32,
    /// The interface; 0 if that is gone.
    pub ifindex: u32,
    attach_type: u32,
}

/// The members of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The members of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

impl TcxLink {
    /// Reads it from the pin of a link.
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
        // SAFETY: the kernel has just opened it for us.
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

/// The system call. What `attributes` point to must live and have the size they say.
fn bpf<T>(command: c_int, attributes: &T) -> io::Result<c_long> {
    let attributes: *const T = attributes;
    // SAFETY: `attributes` are as large as we say, and the kernel takes the rest of its union for 0.
    let result = unsafe { syscall(SYS_bpf, command, attributes, size_of::<T>()) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}
