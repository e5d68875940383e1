//! Hands a packet to a local pod or to the host.

use crate::{
    maps,
    packet::{ETH_LEN, Ipv4, Packet},
    tunnel::written,
};
use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    helpers::{bpf_redirect, bpf_redirect_peer},
};
use ipip_abi::{DropReason, Pod};

/// Delivers into the pod's end of its veth, past the host stack. This node routes the packet:
/// one hop off its time to live.
#[inline(always)]
pub fn to_pod(packet: &Packet, ip: &Ipv4, pod: &Pod) -> Result<i32, DropReason> {
    written(packet.decrement_ttl(ETH_LEN, ip) && packet.set_macs(pod.mac, pod.host_mac))?;
    // SAFETY: the helper only notes where the packet goes.
    Ok(unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32)
}

/// Delivers into the host stack as if it had arrived on `ipip0`, whose reverse path is right for
/// every peer's prefix.
#[inline(always)]
pub fn to_host(packet: &Packet) -> Result<i32, DropReason> {
    let config = maps::config().ok_or(DropReason::RewriteFailed)?;
    // The host takes only frames that are addressed to the interface.
    written(packet.set_macs(config.ipip0_mac, config.ipip0_mac))?;
    // SAFETY: as above.
    Ok(unsafe { bpf_redirect(config.ipip0_ifindex, u64::from(BPF_F_INGRESS)) } as i32)
}
