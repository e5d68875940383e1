//! The datapath: five TC programs. ARCHITECTURE.md shows a packet's path through them.
//!
//! Each entry point only maps a result to a verdict. Each program has one file for its decisions. The files
//! that they share are `packet` (the only one with raw packet pointers), `ipv4` (the header), `inner` (validation
//! of the packet inside a tunnel), `tunnel` (outer headers), `flow`, `connection` and `tuple` (the slow path),
//! `deliver` (local pods and the host), `arp` (ARP from pods), `probe` (probes of paths), `mss` (TCP's segment size),
//! `mtu_hint` (ICMP errors about paths), `vlan` (tags on uplinks), `report` (counters and events), `verdict` (a program's return value) and `maps`.
#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "the classifier attribute drops the doc comments of the entry points"
)]

mod arp;
mod connection;
mod deliver;
mod flow;
mod from_far_end;
mod from_host;
mod from_pod;
mod from_uplink;
mod inner;
mod ipv4;
mod maps;
mod mss;
mod mtu_hint;
mod packet;
mod probe;
mod report;
mod to_pod;
mod tunnel;
mod tuple;
mod verdict;
mod vlan;

use aya_ebpf::{macros::classifier, programs::TcContext};
use ipip_abi::Program;
use packet::Packet;
use verdict::{PASS, verdict};

/// TC ingress of the host side of a pod's veth: packets that the pod sends.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    verdict(&packet, Program::FromPod, from_pod::try_from_pod(&packet))
}

/// TC egress of `ipip0`: packets that the host stack routed to peers.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    verdict(
        &packet,
        Program::FromHost,
        from_host::try_from_host(&packet),
    )
}

/// TC ingress of `ipip0-far`: segments of packets that `from_host` could not encapsulate whole.
#[classifier]
pub fn from_far_end(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    verdict(
        &packet,
        Program::FromFarEnd,
        from_far_end::try_from_far_end(&packet),
    )
}

/// TC ingress of an uplink: packets from peers and from other hosts.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    let packet = Packet::new(&ctx);
    verdict(
        &packet,
        Program::FromUplink,
        from_uplink::try_from_uplink(&packet),
    )
}

/// TC egress of the host side of a pod's veth: packets that the host stack sends to the pod.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    to_pod::record_flow(&Packet::new(&ctx));
    PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No code path panics; otherwise the verifier would reject this endless loop.
    loop {}
}

/// The kernel allows some helpers only to programs under the GPL (`bpf_ktime_get_ns`, the ring buffer).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
