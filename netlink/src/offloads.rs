use crate::{Error, Result};
use nix::libc;
use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

/// What an interface does with many packets as one (linux/ethtool.h).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offload {
    /// Sends TCP in packets of up to 64 KiB, for the card to segment (`ETHTOOL_STSO`).
    Tso,
    /// Merges segments that arrive (`ETHTOOL_SGRO`).
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
pub fn set_offload(ifname: &str, offload: Offload, on: bool) -> Result<()> {
    let command = match offload {
        Offload::Tso => 0x1f,
        Offload::Gro => 0x2c,
    };
    set(ifname, command, on.into()).map_err(|source| Error::Socket {
        attempt: format!("set {offload:?} of link {ifname}"),
        source,
    })
}

fn set(ifname: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(ifname.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` names an interface and points at a `value` that outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
