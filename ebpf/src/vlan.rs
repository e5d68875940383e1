//! VLAN tags on uplinks. A tag with an ID belongs to a VLAN interface above, which has a program of its own. A tag with
//! ID 0 only states a priority (IEEE 802.1Q, 9.6): without such an interface the kernel ignores it, and its IP stack
//! takes the packet as untagged. So must this program.

use crate::packet::{Packet, write_ok};
use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_vlan_pop};
use ipip_abi::DropReason;

const ID: u32 = 0x0fff;

/// Removes a priority tag. Returns whether the frame then belongs to a VLAN interface.
///
/// After the first tag the kernel removes further priority tags without running a program, so a frame with two of
/// them must not go on.
#[inline(always)]
pub fn is_of_a_vlan(packet: &Packet) -> Result<bool, DropReason> {
    if has_id(packet.skb) {
        return Ok(true);
    }
    // SAFETY: the helper gets the kernel's context. It makes a second tag the frame's tag.
    write_ok(unsafe { bpf_skb_vlan_pop(packet.skb) } == 0)?;
    match packet.is_tagged() {
        false => Ok(false),
        true if has_id(packet.skb) => Ok(true),
        true => Err(DropReason::PriorityTags),
    }
}

#[inline(always)]
fn has_id(skb: *mut __sk_buff) -> bool {
    // SAFETY: `skb` is the kernel's context, which is valid for the whole run of the program.
    unsafe { (*skb).vlan_tci & ID != 0 }
}
