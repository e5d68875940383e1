//! A machine that answers probes, although it has no secret.

use anyhow::{Context, Result};
use etherparse::ip_number;
use ipip_abi::{probe::ProbeMessage, wire::DEFAULT_UDP_PORT};
use ipip_lab::LabNode;
use ipip_netlink::Netlink;
use ipip_testkit::{capture::Packet, frames::FrameReceiver, host::Host, packet_builder};
use std::{
    mem::offset_of,
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const ETHERNET_HEADER: usize = 14;
/// Offsets of the addresses in an IPv4 header, and of the message behind the headers of a probe.
const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const MESSAGE: usize = 28;

/// A machine with the InternalIP of a node.
pub struct Reflector<'a> {
    pub host: &'a Host,
    pub address: Ipv4Addr,
    /// The node that has the address elsewhere.
    pub victim: &'a LabNode,
}

impl Reflector<'_> {
    /// Until `stop`: returns each tunnel packet that arrives, as it is, with the inner addresses swapped, and as a forged
    /// answer; and passes it on to the node that has the address. Returns how many there were.
    pub fn run(&self, stop: &AtomicBool) -> Result<u64> {
        let frames = self.host.enter(|| -> Result<_> {
            let link = Netlink::open()?.link("eth0")?;
            FrameReceiver::open(link.context("no eth0")?.index)
        })??;
        let mut reflected = 0;
        while !stop.load(Ordering::Relaxed) {
            while let Some(frame) = frames.receive()? {
                let packet = frame.get(ETHERNET_HEADER..).and_then(Packet::parse);
                if let Some(packet) = packet
                    && packet.inner().is_some()
                {
                    self.reflect(&packet)?;
                    reflected += 1;
                }
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(reflected)
    }

    fn reflect(&self, packet: &Packet) -> Result<()> {
        let is_udp = packet.protocol == ip_number::UDP;
        let inner = &packet.payload[if is_udp { 8 } else { 0 }..];
        let send = |to: Ipv4Addr, inner: &[u8]| {
            let at = |address| SocketAddrV4::new(address, DEFAULT_UDP_PORT);
            let packet = match is_udp {
                true => packet_builder::udp(at(self.address), at(to), inner),
                false => packet_builder::ipip(self.address, to, inner),
            };
            packet_builder::send(self.host, &packet?)
        };
        send(self.victim.public()?, inner)?;
        send(packet.source, inner)?;
        let mut swapped = inner.to_vec();
        swap(&mut swapped, SOURCE, DESTINATION, size_of::<Ipv4Addr>());
        send(packet.source, &swapped)?;
        if inner.len() >= MESSAGE + size_of::<ProbeMessage>() {
            let (sender, receiver) = (
                offset_of!(ProbeMessage, sender),
                offset_of!(ProbeMessage, receiver),
            );
            swap(&mut swapped, MESSAGE + sender, MESSAGE + receiver, 8);
            swapped[MESSAGE + offset_of!(ProbeMessage, kind)] = ProbeMessage::ANSWER;
            swapped[MESSAGE + offset_of!(ProbeMessage, flags)] = ProbeMessage::ACCEPTED;
            send(packet.source, &swapped)?;
        }
        Ok(())
    }
}

/// Swaps two fields of `len` bytes.
fn swap(bytes: &mut [u8], one: usize, other: usize, len: usize) {
    for at in 0..len {
        bytes.swap(one + at, other + at);
    }
}
