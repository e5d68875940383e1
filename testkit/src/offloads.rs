//! Segmentation offloads of interfaces, so that veths behave like network cards.

use nix::libc;
use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

/// An offload of an interface (linux/ethtool.h).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offload {
    /// Segmentation of TCP packets by the interface (`ETHTOOL_STSO`).
    Tso,
    /// Merging of received segments (`ETHTOOL_SGRO`).
    Gro,
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Turns an offload of an interface on or off, in the calling thread's network namespace.
///
/// # Errors
/// The kernel's error, with the offload and the interface.
pub fn set_offload(ifname: &str, offload: Offload, on: bool) -> io::Result<()> {
    let command = match offload {
        Offload::Tso => 0x1f,
        Offload::Gro => 0x2c,
    };
    set(ifname, command, on.into()).map_err(|error| {
        let text = format!("cannot set {offload:?} of link {ifname}: {error}");
        io::Error::new(error.kind(), text)
    })
}

fn set(ifname: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: `ifreq` consists of integers and pointers, for which all-zero bytes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` is an initialised `ifreq` with a zero-terminated name, and `ifru_data` points
    // to an `ethtool_value` that outlives the call, as SIOCETHTOOL expects for these two commands.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
