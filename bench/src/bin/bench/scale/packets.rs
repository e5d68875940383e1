//! Who is in the packets that are measured, and the packets.

use etherparse::{IpNumber, PacketBuilder};
use ipip_abi::Addr;

/// The node's own underlay address.
pub const OWN: Addr = Addr([192, 168, 0, 1]);
/// The server's port in every conversation.
pub const PORT: [u8; 2] = [0, 80];

pub fn address(a: u8, b: u8, number: u32) -> Addr {
    let [_, carry, high, low] = number.to_be_bytes();
    Addr([a, b + carry, high, low])
}

pub fn pod(number: u32) -> Addr {
    address(10, 42, number + 2)
}

pub fn underlay(peer: u32) -> Addr {
    address(100, 64, peer)
}

pub fn remote_pod(peer: u32, host: u8) -> Addr {
    let [_, _, high, low] = peer.to_be_bytes();
    Addr([10, 64 + high, low, host])
}

/// A TCP segment without data in a frame.
pub fn segment(source: Addr, source_port: [u8; 2], destination: Addr, port: [u8; 2]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(source.0, destination.0, 64)
        .tcp(
            u16::from_be_bytes(source_port),
            u16::from_be_bytes(port),
            1,
            1024,
        );
    written(|frame| builder.write(frame, &[0; 64]))
}

/// IP-in-IP from a peer in a frame.
pub fn ipip(source: Addr, inner: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ipv4(source.0, OWN.0, 64);
    written(|frame| builder.write(frame, IpNumber::IPV4, inner))
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("a short packet can be written");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_peers_share_an_address_and_no_remote_pod_is_local() {
        let mut seen = std::collections::BTreeSet::new();
        for peer in 1..=5_000 {
            for address in [underlay(peer), remote_pod(peer, 2), address(172, 16, peer)] {
                assert!(seen.insert(address.0), "{address:?}");
                assert_ne!(address.0[..2], [10, 42]);
            }
        }
        assert_eq!(pod(49_999).0, [10, 42, 195, 81]);
    }
}
