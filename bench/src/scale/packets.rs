//! The addresses in the packets that are measured, and the packets.

use etherparse::{IpNumber, PacketBuilder};
use ipip_abi::Addr;

/// The node's own underlay address.
pub const OWN: Addr = Addr([192, 168, 0, 1]);
/// The remote pod's port in every conversation, big-endian.
pub const PORT: [u8; 2] = [0, 80];

/// The address of a number in the range that starts with `a.b`.
pub fn address(a: u8, b: u8, number: u32) -> Addr {
    let [_, carry, high, low] = number.to_be_bytes();
    Addr([a, b + carry, high, low])
}

/// A pod of the node.
pub fn pod(number: u32) -> Addr {
    address(10, 42, number + 2)
}

/// A peer's underlay address.
pub fn underlay(peer: u32) -> Addr {
    address(100, 64, peer)
}

/// A pod of a peer; `host` is the last byte of its address.
pub fn remote_pod(peer: u32, host: u8) -> Addr {
    let [_, _, high, low] = peer.to_be_bytes();
    Addr([10, 64 + high, low, host])
}

/// An Ethernet frame with a TCP segment of 64 bytes.
pub fn segment(source: Addr, source_port: [u8; 2], destination: Addr, port: [u8; 2]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
        .ipv4(source.0, destination.0, 64)
        .tcp(
            u16::from_be_bytes(source_port),
            u16::from_be_bytes(port),
            1,
            1024,
        );
    frame(|frame| builder.write(frame, &[0; 64]))
}

/// An Ethernet frame with an IP-in-IP packet from a peer to [`OWN`].
pub fn ipip(source: Addr, inner: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]).ipv4(source.0, OWN.0, 64);
    frame(|frame| builder.write(frame, IpNumber::IPV4, inner))
}

/// An Ethernet frame with EtherType ARP, which the programs hand to the host stack at once.
pub fn arp() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[8, 6]);
    frame
}

fn frame<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
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
