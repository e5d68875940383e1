//! The program for packets that leave `ipip0` at its far end: the segments of packets that `from_host` could not
//! encapsulate whole.

use crate::{
    from_host,
    packet::{HEADERS_LEN, Kind, Packet},
    report::count_frame,
    tunnel,
};
use ipip_abi::{Counter, DropReason, Encapsulation, wire::ETH_LEN};

#[inline(always)]
pub fn try_from_far_end(packet: &Packet) -> Result<i32, DropReason> {
    if packet.kind() != Kind::Ipv4 {
        return Err(DropReason::NoRoute);
    }
    packet.pull(HEADERS_LEN);
    let ip = packet.ipv4(ETH_LEN).ok_or(DropReason::Truncated)?;
    let (index, peer) = from_host::peer_of(&ip)?;
    let len = packet.len();
    // A packet that is still large passed `ipip0` while its segmentation offloads were on.
    let verdict = tunnel::send(packet, &ip, index, peer, Encapsulation::None as u16)?
        .ok_or(DropReason::RewriteFailed)?;
    count_frame(len, Counter::HostToTunnel);
    Ok(verdict)
}
