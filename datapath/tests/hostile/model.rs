//! What each program must do with a packet, by the documents alone: ARCHITECTURE.md, SECURITY.md, the tables of reasons
//! and counters, the decisions, and the RFCs. It is written without the sources of the programs and shares no code
//! with them, so a fault has to be made twice to stay hidden. Do not look at `ebpf/` when you change it.
//!
//! The order of checks is not part of the contract: a packet with several faults may be dropped for each of them.

mod leaving;
mod mss;
mod uplink;

use ipip_abi::{Addr, Counter, DropReason, Encapsulation, Mac, Program};
use leaving::{arp, from_host, from_pod};
use uplink::from_uplink;

/// Protocols of tunnels: IPv4 in IPv4, IPv6 in IPv4, GRE.
const TUNNELS: [u8; 3] = [4, 41, 47];
const UDP: u8 = 17;

/// One valid treatment of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Treatment {
    /// It goes on to the kernel unchanged; exactly these counters move.
    Pass(Vec<Counter>),
    /// It is dropped, and exactly this reason counts.
    Drop(DropReason),
    /// It is dropped without a reason; exactly these counters move.
    Ignore(Vec<Counter>),
    /// The kernel refuses the change that the program decided on: the counters of the decision move, and the reason.
    Refused(Vec<Counter>, DropReason),
    /// It leaves through another interface.
    Send(Sent),
}

/// A packet that the program sends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The counters that move.
    pub counters: Vec<Counter>,
    /// Destination and source MAC, where they are known.
    pub macs: (Option<Mac>, Option<Mac>),
    /// The outer header.
    pub outer: Option<Outer>,
    /// The packet, without the outer header, with all bytes that follow it.
    pub packet: Vec<u8>,
}

/// The fields of an outer header that depend on the packet and its peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outer {
    pub destination: Addr,
    pub encapsulation: Encapsulation,
    pub tos: u8,
}

/// Settings of the node and circumstances of the packet that the frame does not show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// IP-in-IP from no peer goes to the host.
    pub foreign_ipip: bool,
    /// The metadata says that this is a GSO packet: its segments decide whether it fits a path.
    pub is_gso: bool,
    /// VLAN IDs of the frame, outermost first; the frame is without these tags.
    pub vlans: [Option<u16>; 2],
}

/// All valid treatments of `frame`, which has no VLAN tags.
pub fn judge(program: Program, frame: &[u8], at: Circumstances) -> Vec<Treatment> {
    let (ethertype, packet) = (&frame[12..14], &frame[14..]);
    let is_ipv4 = ethertype == [0x08, 0x00];
    let is_tagged = at.vlans[0].is_some() || ethertype == [0x81, 0] || ethertype == [0x88, 0xa8];
    match program {
        Program::FromUplink => match at.vlans {
            [Some(0), Some(0)] => drops([DropReason::PriorityTags]),
            [Some(0), None] | [None, _] if is_ipv4 => from_uplink(packet, at.foreign_ipip),
            _ => pass(&[]),
        },
        Program::FromPod if is_tagged => drops([DropReason::PodNotIpv4]),
        Program::FromPod if is_ipv4 => from_pod(packet, at.is_gso),
        Program::FromPod if ethertype == [0x08, 0x06] => arp(packet),
        Program::FromPod => drops([DropReason::PodNotIpv4]),
        Program::FromHost | Program::FromFarEnd if is_ipv4 && !is_tagged => {
            from_host(packet, program)
        }
        Program::FromHost | Program::FromFarEnd => drops([DropReason::NoRoute]),
        // It only records flows.
        Program::ToPod => pass(&[]),
    }
}

fn pass(counters: &[Counter]) -> Vec<Treatment> {
    vec![Treatment::Pass(counters.into())]
}

fn drops(reasons: impl IntoIterator<Item = DropReason>) -> Vec<Treatment> {
    reasons.into_iter().map(Treatment::Drop).collect()
}

/// The kernel of any receiver discards such a packet (RFC 791, RFC 1122), so a program may drop it or pass it to the
/// kernel. No program sends it on.
fn unusable() -> Vec<Treatment> {
    let counters = [
        vec![],
        vec![Counter::NotOurTunnelAddress],
        vec![Counter::ForeignIpipPassed],
        // A damaged ICMP error is no worse than a forged one.
        vec![Counter::MtuHint],
    ];
    let passed = counters.into_iter().map(Treatment::Pass);
    let dropped = DropReason::ALL.iter().copied().map(Treatment::Drop);
    passed.chain(dropped).collect()
}

/// The reasons, or the treatment of a packet without fault.
fn unless(faults: Vec<DropReason>, good: impl FnOnce() -> Vec<Treatment>) -> Vec<Treatment> {
    if faults.is_empty() {
        good()
    } else {
        drops(faults)
    }
}
