//! Packets that an honest sender would not send.

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

/// A UDP packet with its IPv4 header.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut packet, payload)?;
    Ok(packet)
}

/// `inner` behind another IPv4 header (RFC 2003).
pub fn ipip(from: Ipv4Addr, to: Ipv4Addr, inner: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(from.octets(), to.octets(), 64).write(
        &mut packet,
        PROTO_IPIP.into(),
        inner,
    )?;
    Ok(packet)
}

/// Sends `packet`, an IPv4 header with what follows, as it is: from whatever source it names,
/// along the route of `host` to its destination.
pub fn send(host: &Host, packet: &[u8]) -> Result<()> {
    let destination = packet
        .get(16..20)
        .context("a packet without an IPv4 header")?;
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
