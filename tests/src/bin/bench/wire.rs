//! Wires on which packets of the MTU's size travel, as behind a network card, and not the 64 KiB packets
//! that a veth hands over as they are.

use anyhow::{Context, Result};
use ipip_tests::host::Host;
use nix::libc;
use std::{io, net::UdpSocket, os::fd::AsRawFd};

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_STSO`.
const SET_TSO: u32 = 0x1f;
/// `ETHTOOL_SGRO`.
const SET_GRO: u32 = 0x2c;
/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Has the kernel segment what leaves by the interface. A veth also merges only what comes from one that
/// does so.
pub fn segment(host: &Host, ifname: &str) -> Result<()> {
    host.enter(|| set(ifname, SET_TSO, 0))?
        .with_context(|| format!("cannot turn off TSO of {ifname} in {}", host.name()))
}

/// Merges what arrives on the interface (GRO), as a network card's driver does.
pub fn merge(host: &Host, ifname: &str) -> Result<()> {
    host.enter(|| set(ifname, SET_GRO, 1))?
        .with_context(|| format!("cannot turn on GRO of {ifname} in {}", host.name()))
}

fn set(ifname: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
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
