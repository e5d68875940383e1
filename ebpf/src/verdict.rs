//! The return values of the programs.

use crate::{packet::Packet, report};
use core::hint::cold_path;
use ipip_abi::{DropReason, Program};

/// Hands the packet to the next program or, after the last one, to the kernel.
pub const PASS: i32 = aya_ebpf::bindings::TC_ACT_UNSPEC;
/// Drops the packet.
pub const DROP: i32 = aya_ebpf::bindings::TC_ACT_SHOT;

/// The verdict of `program` on the packet: the value of `decided`, or [`DROP`] after reporting the reason.
#[inline(always)]
pub fn verdict(packet: &Packet, program: Program, decided: Result<i32, DropReason>) -> i32 {
    match decided {
        Ok(verdict) => verdict,
        Err(reason) => {
            cold_path();
            report::drop(packet, program, reason);
            DROP
        }
    }
}
