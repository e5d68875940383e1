//! Hands a packet to a local pod or to the host.

use crate::{
    ipv4::Ipv4,
    maps,
    packet::{Packet, write_ok},
};
use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_redirect_peer},
};
use ipip_abi::{
    DropReason, Encapsulation, Pod,
    wire::{ETH_LEN, OUTER_IP_LEN, OUTER_IP_UDP_LEN},
};

/// Delivers into the pod's end of its veth, past the host stack. This node is a router on the packet's path,
/// so it decrements the time to live.
#[inline(always)]
pub fn to_pod(packet: &Packet, ip: &Ipv4, pod: &Pod) -> Result<i32, DropReason> {
    write_ok(packet.decrement_ttl(ETH_LEN, ip) && packet.set_macs(pod.mac, pod.host_mac))?;
    // SAFETY: the helper only stores the target interface for after the program's end.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}

/// Delivers into the host stack as if the packet had arrived on `ipip0`. The reverse path filter accepts that,
/// because the routes to all peers' prefixes go through `ipip0`. `HEAD` bytes of outer headers were removed.
#[inline(always)]
pub fn to_host<const HEAD: usize>(packet: &Packet) -> Result<i32, DropReason> {
    let config = maps::config().ok_or(DropReason::RewriteFailed)?;
    // `from_host` needs it if the host sends the packet to another peer.
    packet.set_arrived_in(match HEAD {
        OUTER_IP_LEN => Encapsulation::Ipip as u16,
        OUTER_IP_UDP_LEN => Encapsulation::Udp as u16,
        _ => Encapsulation::None as u16,
    });
    // The host accepts only frames that are addressed to the interface.
    write_ok(packet.set_macs(config.ipip0_mac, config.ipip0_mac))?;
    // SAFETY: the helper only stores the target interface for after the program's end.
    Ok(unsafe { bpf_redirect(config.ipip0_ifindex, u64::from(BPF_F_INGRESS)) } as i32)
}
