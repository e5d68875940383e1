//! TCP's maximum segment size (RFC 9293, 3.7.1; RFC 6691).

use crate::{
    ipv4::{Ipv4, sum},
    world::MTU,
};
use std::ops::Range;

const SYN: u8 = 2;
/// Place of the checksum in the TCP header.
const CHECKSUM: Range<usize> = 16..18;

/// The packet with the MSS that the paths carry, if it is a SYN that states a larger one. All paths have the same MTU.
pub fn lowered(packet: &Ipv4) -> Option<Vec<u8>> {
    if packet.protocol() != 6 || packet.is_later_fragment() {
        return None;
    }
    let segment = packet.payload();
    let header = segment.get(..usize::from(segment.get(12)? >> 4) * 4)?;
    let at = 20 + value_in(header.get(20..)?)?;
    let most = (MTU - 40).to_be_bytes();
    if header[13] & SYN == 0 || header[at..at + 2] <= most[..] {
        return None;
    }
    let mut changed = header.to_vec();
    changed[at..at + 2].copy_from_slice(&most);
    // RFC 1624, eqn. 3, of all words at once.
    changed[CHECKSUM].fill(0);
    let inverted = |bytes: &[u8]| bytes.iter().map(|byte| !byte).collect::<Vec<_>>();
    let mut before = inverted(header);
    before[CHECKSUM].fill(0);
    let all = [inverted(&header[CHECKSUM]), before, changed.clone()].concat();
    changed[CHECKSUM].copy_from_slice(&(!sum(&all)).to_be_bytes());
    let mut bytes = packet.all().to_vec();
    bytes[packet.header_len()..][..changed.len()].copy_from_slice(&changed);
    Some(bytes)
}

/// Where the value of the last MSS is, if all options are well-formed.
fn value_in(options: &[u8]) -> Option<usize> {
    let (mut at, mut found) = (0, None);
    loop {
        let rest = &options[at..];
        at += match rest {
            [] | [0, ..] => return found,
            [1, ..] => 1,
            [2, 4, _, _, ..] => {
                found = Some(at + 2);
                4
            }
            [2, ..] => return None,
            [_, len, ..] if (2..=rest.len()).contains(&usize::from(*len)) => usize::from(*len),
            _ => return None,
        };
    }
}
