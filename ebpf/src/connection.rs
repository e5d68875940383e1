//! Open TCP connections of the slow path. `FLOWS` forgets the flow that was unused for longest, which may be an idle
//! connection whose server sends next. So a connection is copied to `CONNECTIONS` with its first answered segment, and leaves
//! it when the end that sends in this direction closes or resets it. Flows of other protocols, and connections that were
//! never answered or that have ended, do not displace it.

use crate::{ipv4::Ipv4, maps, packet::Packet};
use ipip_abi::{Flow, FlowKey, wire::TCP_LEN};

/// Offset of data offset and flags in the TCP header (RFC 9293).
const OFFSET_AND_FLAGS: usize = 12;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

/// Follows the connection of a segment in the direction that takes the slow path because of the entry `flow`. `kept`
/// says that the entry is in `CONNECTIONS`.
#[inline(always)]
pub fn follow(packet: &Packet, offset: usize, ip: &Ipv4, key: &FlowKey, flow: Flow, kept: bool) {
    let mut word = [0_u8; 2];
    if !packet.load(offset + ip.header_len() + OFFSET_AND_FLAGS, &mut word) {
        return;
    }
    let [data_offset, flags] = word;
    if flags & (FIN | RST) != 0 {
        let closed = Flow {
            flags: flow.flags | Flow::CLOSED,
        };
        // The other end's last segments still need the entry.
        let _ = maps::FLOWS.insert(key, closed, 0);
        let _ = maps::CONNECTIONS.remove(key);
    } else if flags & SYN == 0 && !kept {
        let headers = ip.header_len() + ((data_offset >> 4) as usize * 4).max(TCP_LEN);
        // The last segment of a connection acknowledges the other end's FIN and has no data.
        if flow.flags & Flow::CLOSED == 0 || packet.ip_len(offset, ip) > headers {
            let open = Flow {
                flags: flow.flags & !Flow::CLOSED,
            };
            // An insertion fails only if this CPU has no free entry at this moment. The next segment tries again.
            let _ = maps::CONNECTIONS.insert(key, open, 0);
        }
    }
}
