//! The datapath: four TC programs. ARCHITECTURE.md shows a packet's way through them.
//!
//! Each entry point only maps a result to a verdict; a file per program holds its decisions, and
//! what they share stands beside: `packet` (the only place with raw packet pointers), `tunnel`
//! (outer headers), `flow` (the symmetric path), `deliver` (local pods and the host), `report`
//! (counters and events).
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the classifier attribute drops the doc comments of the entry points"
)]

mod deliver;
mod flow;
mod from_host;
mod from_pod;
mod from_uplink;
mod inner;
mod maps;
mod packet;
mod report;
mod to_pod;
mod tunnel;

use aya_ebpf::{macros::classifier, programs::TcContext};
use ipip_abi::Hook;
use packet::Packet;

/// Hands the packet to the next program or, after the last one, to the kernel.
const PASS: i32 = aya_ebpf::bindings::TC_ACT_UNSPEC;
/// Drops the packet.
const DROP: i32 = aya_ebpf::bindings::TC_ACT_SHOT;

/// TC ingress of the host side of a pod's veth: what the pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    report::verdict(&packet, Hook::FromPod, from_pod::try_from_pod(&packet))
}

/// TC egress of `ipip0`: what the host stack routed to peers.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    report::verdict(&packet, Hook::FromHost, from_host::try_from_host(&packet))
}

/// TC ingress of an uplink: what peers, and everybody else, send to this node.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    report::verdict(
        &packet,
        Hook::FromUplink,
        from_uplink::try_from_uplink(&packet),
    )
}

/// TC egress of the host side of a pod's veth: what the host stack sends to the pod.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    to_pod::remember(&Packet::new(&ctx));
    PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No code path panics: the verifier would refuse the endless loop.
    loop {}
}

/// The helpers used are for programs under the GPL (`bpf_ktime_get_ns`, ring buffer).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
