//! What a node exchanges with each peer, apart by what clouds bill.

use crate::{values::plain, wire::OUTER_IP_UDP_LEN};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

plain! {
    /// Bytes in both directions. The first number of each is what went over private paths, the second one what went over
    /// public paths ([`Peer::PUBLIC`](crate::Peer::PUBLIC), [`NodeAddr::PUBLIC`](crate::NodeAddr::PUBLIC)), which clouds bill.
    ///
    /// They are IPv4 packets as the network carries them, with their outer headers and without the Ethernet header. Each
    /// segment of a GSO packet counts as a packet with the headers of TCP as Linux sends it, so the sum is an estimate.
    #[derive(Default)]
    pub struct PeerBytes {
        /// Sent to the peer.
        tx: [u64; 2],
        /// Received from the peer.
        rx: [u64; 2],
    }

    /// Traffic with one peer, on one CPU; a value of `PEER_TRAFFIC`.
    #[derive(Default)]
    pub struct PeerTraffic {
        /// Packets sent to the peer (a GSO packet is one).
        tx_packets: u64,
        /// Packets received from the peer (what GRO has merged is one).
        rx_packets: u64,
        /// Bytes of both directions.
        bytes: PeerBytes,
    }
}

/// The bits of a value of `SENT` after a packet was sent to the peer: one for each reader in user space, which clears its own.
pub const SENT_UNSEEN: u32 = 0xffff;
/// Also after a packet of more than [`LARGE`] bytes: one for each reader of those.
pub const SENT_LARGE_UNSEEN: u32 = 0xffff_0000;
/// Bytes of an inner packet that each path passes: nodes search no MTU below 1,280.
pub const LARGE: usize = 1280 - OUTER_IP_UDP_LEN;

impl PeerBytes {
    /// All bytes sent.
    pub const fn sent(&self) -> u64 {
        self.tx[0].wrapping_add(self.tx[1])
    }

    /// All bytes received.
    pub const fn received(&self) -> u64 {
        self.rx[0].wrapping_add(self.rx[1])
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: [u64; 2], b: [u64; 2]| [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])];
        Self {
            tx: sum(self.tx, other.tx),
            rx: sum(self.rx, other.rx),
        }
    }

    /// What was counted after `earlier`: all of it if a counter is lower than then, because the counters began again.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let less =
            |a: [u64; 2], b: [u64; 2]| Some([a[0].checked_sub(b[0])?, a[1].checked_sub(b[1])?]);
        match (less(self.tx, earlier.tx), less(self.rx, earlier.rx)) {
            (Some(tx), Some(rx)) => Self { tx, rx },
            _ => self,
        }
    }
}

/// Sent on private and on public paths, then received on them.
impl From<PeerBytes> for [u64; 4] {
    fn from(bytes: PeerBytes) -> Self {
        zerocopy::transmute!(bytes)
    }
}

impl From<[u64; 4]> for PeerBytes {
    fn from(bytes: [u64; 4]) -> Self {
        zerocopy::transmute!(bytes)
    }
}

impl PeerTraffic {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            tx_packets: self.tx_packets.wrapping_add(other.tx_packets),
            rx_packets: self.rx_packets.wrapping_add(other.rx_packets),
            bytes: self.bytes.plus(other.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_since_is_the_difference_or_all_if_the_counters_began_again() {
        let at = |tx, rx| PeerBytes { tx, rx };
        let earlier = at([10, 20], [30, 40]);
        let later = at([11, 22], [33, 44]);
        assert_eq!(later.since(earlier), at([1, 2], [3, 4]));
        assert_eq!(earlier.since(earlier), PeerBytes::default());
        assert_eq!(later.since(earlier).plus(earlier), later);
        // One of the four is enough.
        let again = at([11, 22], [33, 39]);
        assert_eq!(again.since(earlier), again);
    }
}
