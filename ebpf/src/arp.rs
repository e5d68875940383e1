//! ARP from pods. A pod's neighbour entry for its gateway is permanent, so only two ask for it: a pod whose entry was
//! flushed, and a guest behind the pod (a virtual machine, a bridge), which may have another MAC and no address yet.
//!
//! This program answers every request for the gateway itself, and sends the answer only to the pod that asked. The host
//! must not see requests of pods: the kernel makes a neighbour entry for each sender, and all entries of a machine share
//! one limit.

use crate::{
    maps,
    packet::{Packet, write_ok},
    report::count_rare,
    verdict::{DROP, PASS, verdict},
};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_redirect};
use ipip_abi::{
    Addr, Counter, DropReason, Mac, POD_GATEWAY, POD_GATEWAY_MAC, Program, wire::ETH_LEN,
};

/// The fields before the operation (RFC 826): Ethernet and IPv4, with the lengths of their addresses.
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// An ARP packet about IPv4 on Ethernet (RFC 826).
#[derive(Clone, Copy)]
#[repr(C, align(2))]
struct Arp {
    kind: [u8; 6],
    operation: [u8; 2],
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

/// The verdict of `from_pod` on an ARP packet. Not inlined, so that the path of IPv4 stays short.
#[inline(never)]
pub fn from_pod(skb: *mut __sk_buff) -> i32 {
    let packet = &Packet { skb };
    verdict(packet, Program::FromPod, try_from_pod(packet))
}

#[inline(always)]
fn try_from_pod(packet: &Packet) -> Result<i32, DropReason> {
    packet.pull(ETH_LEN + size_of::<Arp>());
    let arp: Arp = packet.read(ETH_LEN).ok_or(DropReason::Truncated)?;
    if arp.kind != ETHERNET_AND_IPV4 || !is_a_stations(arp.sender_mac) {
        return Err(DropReason::PodArp);
    }
    let (sender, target) = (Addr(arp.sender), Addr(arp.target));
    let own = maps::pod(sender).filter(|own| own.ifindex == packet.ifindex());
    if own.is_some_and(|own| own.mac != arp.sender_mac) {
        // A guest took over the pod's address, but not its MAC. The agent corrects the host's neighbour entry.
        count_rare(packet.skb, Counter::PodMacLearned);
        maps::set_pod_mac(sender, arp.sender_mac);
    }
    match arp.operation {
        // A gratuitous ARP states its sender's own address (RFC 5944, 4.6).
        REQUEST | REPLY if sender == target => ignored(packet),
        REQUEST if target == POD_GATEWAY => {
            let mac = own.map_or(POD_GATEWAY_MAC, |own| own.host_mac);
            answer(packet, &arp, mac)
        }
        // A probe for a duplicate address (RFC 5227) has no sender.
        REQUEST if sender == Addr::ZERO => ignored(packet),
        // The pod answers the host, which asks if the pod's permanent neighbour entry is lost.
        REPLY if own.is_some() => Ok(PASS),
        _ => Err(DropReason::PodArp),
    }
}

/// Whether the MAC is one station's: neither a group's (IEEE 802.3), nor zero, as a sender without an address may write.
/// Packets to any other MAC would be lost (RFC 1812, 3.3.2).
#[inline(always)]
fn is_a_stations(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac.0 != [0; 6]
}

#[inline(always)]
fn ignored(packet: &Packet) -> Result<i32, DropReason> {
    count_rare(packet.skb, Counter::ArpIgnored);
    Ok(DROP)
}

/// Turns the request into the reply that the gateway has `mac`, and sends it back to the pod.
#[inline(always)]
fn answer(packet: &Packet, request: &Arp, mac: Mac) -> Result<i32, DropReason> {
    let reply = Arp {
        operation: REPLY,
        sender_mac: mac,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
        ..*request
    };
    count_rare(packet.skb, Counter::ArpAnswered);
    write_ok(packet.set_macs(request.sender_mac, mac) && packet.write(ETH_LEN, reply))?;
    // SAFETY: the helper only stores the target interface for after the program's end.
    Ok(unsafe { bpf_redirect(packet.ifindex(), 0) } as i32)
}
