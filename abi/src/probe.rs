//! Probes, by which nodes verify the paths between them.
//!
//! A probe is a UDP packet from the probe address of one node to that of another, at the port of the `udp` encapsulation, inside
//! the encapsulation that it verifies. The receiver's programs answer it, also while no agent runs there. Both carry a
//! [`ProbeMessage`] under a secret that only these two nodes can derive, because a nonce would prove nothing: any machine that
//! has the address of a peer could return it.

use crate::{Addr, Candidate, Encapsulation, values::plain};
use core::{fmt, ops::Range};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The secret of two nodes: a key of SipHash, as two words in host byte order.
pub type ProbeKey = [u64; 2];

/// Candidates of one peer.
pub const CANDIDATES_PER_PEER: u32 = 8;

/// What authenticates the probes between this node and a peer; a value of `PROBE_SECRETS`.
#[derive(Clone, Copy, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct ProbeSecret {
    /// The key that both nodes derive; zero if there is none.
    pub key: ProbeKey,
    /// The identity of this node.
    pub own: [u8; 8],
    /// The identity of the peer.
    pub peer: [u8; 8],
    /// The peer's probe address.
    pub address: Addr,
    /// Zero.
    pub _pad: u32,
}

// SAFETY: `IntoBytes` and `FromBytes` prove that every byte is initialised and that every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ProbeSecret {}

/// Without the key.
impl fmt::Debug for ProbeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProbeSecret({:?} with {:?})", self.own, self.peer)
    }
}

plain! {
    /// What the programs remember of the probes of one candidate, so that nobody can replay one; a value of
    /// `PROBE_STATES`. Times are of `CLOCK_MONOTONIC`, in nanoseconds.
    #[derive(Default)]
    pub struct ProbeState {
        /// The clock of the peer in the last probe that this node answered.
        asked: u64,
        /// Until when the answers to the peer's probes are paid for: see [`ProbeState::INTERVAL_NS`].
        paid_until: u64,
        /// This node's clock in the last probe that the peer answered.
        answered: u64,
        /// When that answer arrived.
        received_at: u64,
        /// The outer source of the peer's last probe, as it arrived.
        peer_source: Addr,
        /// Bytes of the answered probe's inner packet, as they arrived at the peer.
        len: u16,
        /// The flags of the answer: [`ProbeMessage::ACCEPTED`].
        flags: u8,
        /// Zero.
        _pad: u8,
    }
}

plain! {
    /// An authentic answer that is newer than the last one: an item of the ring buffer `ANSWERS`. Times are of
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub struct ProbeReceipt {
        /// When this node sent the probe.
        sent_at: u64,
        /// When the answer arrived.
        received_at: u64,
        /// The peer's index in `PEERS`.
        peer: u16,
        /// Bytes of the probe's inner packet, as they arrived at the peer.
        len: u16,
        /// The outer source that the peer saw on the probe; zero if it did not state it.
        seen: Addr,
        /// The number of the [`Candidate`].
        candidate: u8,
        /// The flags of the answer: [`ProbeMessage::ACCEPTED`].
        flags: u8,
        /// Zero.
        _pad: [u8; 6],
    }
}

impl ProbeState {
    /// A node answers one probe of a candidate in this time on average, and [`Self::BURST`] of them at once.
    pub const INTERVAL_NS: u64 = 20_000_000;
    /// Probes that are answered at once.
    pub const BURST: u64 = 16;
}

impl ProbeSecret {
    /// Whether there is one.
    #[inline(always)]
    pub fn is_set(&self) -> bool {
        self.key != [0; 2]
    }
}

impl Candidate {
    /// The candidate's encapsulation.
    #[inline(always)]
    pub const fn encapsulation(self) -> Encapsulation {
        match self {
            Self::PrivateIpip | Self::PublicIpip => Encapsulation::Ipip,
            Self::PrivateUdp | Self::PublicUdp => Encapsulation::Udp,
            Self::Direct => Encapsulation::Direct,
        }
    }

    /// Whether nothing on the way translates addresses. Probe and answer are then valid only with the outer addresses that they
    /// name: a machine that passes them on from another address proves nothing.
    #[inline(always)]
    pub const fn is_private(self) -> bool {
        matches!(self, Self::PrivateIpip | Self::PrivateUdp)
    }

    /// Whether it leads to the peer's public endpoint.
    pub const fn is_public(self) -> bool {
        matches!(self, Self::PublicIpip | Self::PublicUdp)
    }
}

/// The index in `CANDIDATES` and `PROBE_STATES` of a peer's candidate. A number beyond the last one means the last one.
#[inline(always)]
pub const fn candidate_index(peer: u16, candidate: u8) -> u32 {
    let last = CANDIDATES_PER_PEER - 1;
    let candidate = candidate as u32;
    peer as u32 * CANDIDATES_PER_PEER + if candidate < last { candidate } else { last }
}

/// The indexes in `CANDIDATES` and `PROBE_STATES` of a peer's candidates, in the order of their numbers.
pub const fn candidate_indexes(peer: u16) -> Range<u32> {
    let first = candidate_index(peer, 0);
    first..first + CANDIDATES_PER_PEER
}

/// The words that the authentication code covers: the message without the code.
const WORDS: usize = 6;

/// What probe and answer carry. Numbers are in network byte order.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C, align(4))]
pub struct ProbeMessage {
    /// [`ProbeMessage::MAGIC`].
    pub magic: [u8; 4],
    /// [`ProbeMessage::PROBE`] or [`ProbeMessage::ANSWER`].
    pub kind: u8,
    /// Bits: [`ProbeMessage::ACCEPTED`].
    pub flags: u8,
    /// In a probe, its whole inner length in bytes. In an answer, that of the probe as it arrived: the answer itself is short,
    /// so that each direction's MTU is measured alone.
    pub len: [u8; 2],
    /// The prober's clock in nanoseconds, which never returns to an earlier value under the same secret. An answer repeats it.
    pub sent_at: [u8; 8],
    /// The identity of the node that sends this message. The direction is part of the message, so that a probe that comes back
    /// is no answer.
    pub sender: [u8; 8],
    /// The identity of the node that receives it.
    pub receiver: [u8; 8],
    /// The outer source with which the prober sends.
    pub source: Addr,
    /// The outer destination to which it sends.
    pub destination: Addr,
    /// The number that the prober gave to the candidate. An answer repeats it.
    pub candidate: u8,
    /// Zero.
    pub _pad: [u8; 3],
    /// In an answer, the outer source that the peer saw on the probe. Zero in a probe, and in an answer of programs that do not
    /// state it: they repeat the probe's bytes.
    pub seen: Addr,
    /// [Code](ProbeMessage::expected_code) of everything before.
    pub code: [u8; 8],
}

impl ProbeMessage {
    /// The first bytes of a message: no other use of the port begins like this.
    pub const MAGIC: [u8; 4] = *b"ipp\x01";
    /// A question whether this path works.
    pub const PROBE: u8 = 1;
    /// The answer to it.
    pub const ANSWER: u8 = 2;
    /// Of an answer: the receiver accepts data from the outer source of the probe.
    pub const ACCEPTED: u8 = 1;

    /// The authentication code that belongs to this message.
    #[inline(always)]
    pub fn expected_code(&self, key: ProbeKey) -> [u8; 8] {
        let words: &[[u32; 2]; WORDS + 1] = zerocopy::transmute_ref!(self);
        mac(key, &words[..WORDS]).to_be_bytes()
    }

    /// The message with its authentication code.
    #[must_use]
    pub fn signed(mut self, key: ProbeKey) -> Self {
        self.code = self.expected_code(key);
        self
    }

    /// Whether the code is right.
    pub fn is_authentic(&self, key: ProbeKey) -> bool {
        self.code == self.expected_code(key)
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of the message without its code: a message authentication code that is cheap
/// enough for a program that runs for each probe of a stranger. A word is two halves, in little-endian byte order.
#[inline(always)]
fn mac(key: ProbeKey, words: &[[u32; 2]]) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for [low, high] in words {
        let (low, high) = (u32::from_le(*low), u32::from_le(*high));
        absorb(&mut state, u64::from(high) << 32 | u64::from(low));
    }
    absorb(&mut state, (WORDS as u64 * 8) << 56);
    state[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    round(state);
    state[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    const KEY: ProbeKey = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn message() -> ProbeMessage {
        ProbeMessage {
            magic: ProbeMessage::MAGIC,
            kind: ProbeMessage::PROBE,
            flags: 0,
            len: 1480_u16.to_be_bytes(),
            sent_at: 1_u64.to_be_bytes(),
            sender: *b"node a's",
            receiver: *b"node b's",
            source: Addr([10, 0, 0, 11]),
            destination: Addr([203, 0, 113, 21]),
            candidate: 3,
            _pad: [0; 3],
            seen: Addr::ZERO,
            code: [0; 8],
        }
    }

    /// The standard library has another implementation of SipHash-2-4.
    #[test]
    #[expect(deprecated, reason = "its successor is SipHash-1-3")]
    fn the_code_is_siphash_2_4_of_the_bytes_before_it() {
        use core::hash::{Hasher, SipHasher};
        for seed in 0..1000_u64 {
            let key = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed ^ KEY[1]];
            let message = ProbeMessage {
                sent_at: seed.wrapping_mul(0xff51_afd7_ed55_8ccd).to_be_bytes(),
                candidate: seed as u8,
                ..message()
            };
            let mut hasher = SipHasher::new_with_keys(key[0], key[1]);
            let bytes = message.as_bytes();
            hasher.write(&bytes[..bytes.len() - 8]);
            assert_eq!(message.signed(key).code, hasher.finish().to_be_bytes());
        }
    }

    #[test]
    fn a_message_that_is_changed_anywhere_is_not_authentic() {
        let signed = message().signed(KEY);
        assert!(signed.is_authentic(KEY));
        assert!(!signed.is_authentic([KEY[0], KEY[1] ^ 1]));
        for bit in 0..size_of::<ProbeMessage>() * 8 {
            let mut bytes = [0; size_of::<ProbeMessage>()];
            bytes.copy_from_slice(signed.as_bytes());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let changed = ProbeMessage::read_from_bytes(&bytes).unwrap();
            assert!(!changed.is_authentic(KEY), "bit {bit}");
        }
    }
}
