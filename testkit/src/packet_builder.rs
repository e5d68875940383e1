//! Builds packets with forged addresses, and sends them.

use crate::host::Host;
use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use ipip_abi::wire::PROTO_IPIP;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
};

/// Builds a UDP packet with its IPv4 header.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut packet, payload)?;
    Ok(packet)
}

/// Builds an IPv4 packet with the packet `inner` as its payload (RFC 2003).
pub fn ipip(from: Ipv4Addr, to: Ipv4Addr, inner: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.octets(), to.octets(), 64).write(
        &mut packet,
        PROTO_IPIP.into(),
        inner,
    )?;
    Ok(packet)
}

/// Sends `packet`, which begins with its IPv4 header, unchanged: with any source address, along the route of
/// `host` to its destination.
pub fn send(host: &Host, packet: &[u8]) -> Result<()> {
    let destination = packet
        .get(16..20)
        .context("the packet is shorter than an IPv4 header")?;
    let to = SockaddrIn::new(
        destination[0],
        destination[1],
        destination[2],
        destination[3],
        0,
    );
    host.enter(|| -> nix::Result<()> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?;
        sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        Ok(())
    })?
    .with_context(|| format!("cannot send a forged packet from {}", host.name()))
}
