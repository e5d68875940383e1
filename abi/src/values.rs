//! Map keys and values.

use crate::{
    Addr, Encapsulation, Mac,
    handover::FAMILY_IPV4,
    wire::{OUTER_FRAGMENT, OUTER_TTL, OUTER_VERSION_IHL},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A struct in a map or an event: plain bytes without hidden padding.
macro_rules! plain {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        // SAFETY: `IntoBytes` and `FromBytes` above prove that every byte is initialised and
        // that every bit pattern is valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )*};
}
pub(crate) use plain;

// SAFETY: `Addr` derives `IntoBytes` and `FromBytes`, which prove that every byte is initialised and
// that every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Addr {}

plain! {
    /// The settings of this node that the programs need; the only entry of `CONFIG`.
    #[derive(Default)]
    pub struct Config {
        /// Interface index of `ipip0`; 0 until the agent has written the configuration.
        ipip0_ifindex: u32,
        /// MAC of `ipip0`. The host accepts only frames for it.
        ipip0_mac: Mac,
        /// UDP port of the `udp` encapsulation.
        udp_port: [u8; 2],
        /// Bits: [`Config::FOREIGN_IPIP_PASS`].
        flags: u32,
        /// Drop events that one CPU may write per second; 0 disables events.
        events_per_second: u32,
        /// MTU that the CNI plugin gives to new pods, in bytes.
        pod_mtu: u32,
        /// Largest GSO packet of new pods, in bytes (`gso_ipv4_max_size`); 0 leaves the kernel's default.
        pod_gso_max: u32,
        /// The [probe address](crate::probe) of this node, or zero.
        probe_address: Addr,
    }

    /// A value of `PODS`: the veth through which a local pod receives and sends.
    #[derive(Default)]
    pub struct Pod {
        /// In the build that tests use as the next version: other offsets.
        #[cfg(feature = "next-abi")]
        flags: u32,
        /// Interface index of the host side of its veth.
        ifindex: u32,
        /// MAC of the pod's own interface.
        mac: Mac,
        /// MAC of the host side.
        host_mac: Mac,
        /// Bits: [`Pod::HOST_STACK`].
        #[cfg(not(feature = "next-abi"))]
        flags: u32,
    }

    /// Key of the longest-prefix-match map `ROUTES`, in the layout of the kernel's `struct bpf_lpm_trie_key`.
    #[derive(Default, Hash)]
    pub struct RouteKey {
        /// Length of the prefix in bits, 0 to 32.
        prefix_len: u32,
        /// The prefix.
        prefix: Addr,
    }

    /// The peer that a prefix belongs to; a value of `ROUTES`.
    #[derive(Default)]
    pub struct Route {
        /// Index into `PEERS`; 0 is this node.
        peer: u16,
        /// [`Route::PODS`] or [`Route::NODE`].
        kind: u8,
        /// Zero.
        _pad: u8,
    }

    /// The path to a peer; a value of `PEERS`. Index 0 (this node) stays zero.
    #[derive(Default)]
    pub struct Peer {
        /// Outer destination.
        underlay: Addr,
        /// Outer source: this node's underlay address towards the peer, before any NAT.
        source: Addr,
        /// Interface index of the uplink.
        ifindex: u32,
        /// Largest inner packet that fits, in bytes.
        mtu: u16,
        /// An [`Encapsulation`] code.
        encapsulation: u8,
        /// Bits: [`Peer::MAC_KNOWN`], [`Peer::PUBLIC`].
        flags: u8,
        /// MAC of the next hop, if known.
        next_hop_mac: Mac,
        /// MAC of the uplink.
        uplink_mac: Mac,
        /// [`Peer::partial_sum`] of the outer header. A program adds the fields that differ per packet.
        header_sum: u32,
    }

    /// The owner and the roles of a node's address (an InternalIP or a public endpoint); a value of `NODE_ADDRS`.
    #[derive(Default)]
    pub struct NodeAddr {
        /// Index into `PEERS`; 0 is this node.
        peer: u16,
        /// Bits: [`NodeAddr::OWN`], [`NodeAddr::UNDERLAY`], [`NodeAddr::TUNNEL_ONLY`], [`NodeAddr::PUBLIC`].
        flags: u8,
        /// Zero.
        _pad: u8,
    }

    /// The latest ICMP error `fragmentation needed` about the path to a peer; a value of `MTU_HINTS`. It is no proof,
    /// because anybody can forge it.
    #[derive(Default)]
    pub struct MtuHint {
        /// When it arrived, `CLOCK_MONOTONIC`, in nanoseconds; 0 if none has.
        at_ns: u64,
        /// The MTU that it states, in bytes with the outer headers; 0 if the router states none.
        mtu: u16,
        /// Zero.
        _pad: [u8; 6],
    }

    /// Key of `FLOWS`, canonical: the lower end comes first, so that both directions have the same key.
    #[derive(Default, Hash)]
    pub struct FlowKey {
        /// The end with the lower (address, port).
        low: Addr,
        /// The other end.
        high: Addr,
        /// Port of `low`; 0 if the protocol has no ports.
        low_port: [u8; 2],
        /// Port of `high`.
        high_port: [u8; 2],
        /// IP protocol number.
        protocol: u8,
        /// [`FAMILY_IPV4`]: the family of the addresses.
        family: u8,
        /// Zero.
        _pad: [u8; 2],
    }

    /// A flow whose forward direction came out of the host stack.
    #[derive(Default)]
    pub struct Flow {
        /// [`Flow::FROM_LOW`], [`Flow::CLOSED`]. Other bits belong to other versions.
        flags: u32,
    }

    /// Packets and bytes of one drop reason or counter on one CPU. Bytes are those of the frame.
    #[derive(Default)]
    pub struct Tally {
        /// Packets (a GSO packet is one).
        packets: u64,
        /// Bytes with the Ethernet header.
        bytes: u64,
    }

    /// Name and state of a peer, for display. The programs never read it.
    pub struct PeerInfo {
        /// A [`PeerState`](crate::PeerState) code.
        state: u8,
        /// Bits: the constants of [`PeerInfo`].
        notes: u8,
        /// Length of the name in bytes.
        name_len: u8,
        /// The node's name (RFC 1123, at most 253 bytes), padded with zeros.
        name: [u8; 253],
    }

    /// A sampled drop: an item of the ring buffer `EVENTS`.
    #[derive(Default)]
    pub struct DropEvent {
        /// `CLOCK_MONOTONIC`, in nanoseconds.
        at_ns: u64,
        /// Interface on which the program ran.
        ifindex: u32,
        /// Length of the frame in bytes.
        len: u32,
        /// Source; that of the inner packet if [the reason concerns it](crate::DropReason::is_about_inner).
        source: Addr,
        /// Destination; that of the inner packet if the reason concerns it.
        destination: Addr,
        /// Source port, or 0.
        source_port: [u8; 2],
        /// Destination port, or 0.
        destination_port: [u8; 2],
        /// Index of the peer that sent the packet; 0 if it is unknown.
        peer: u16,
        /// IP protocol number.
        protocol: u8,
        /// A [`DropReason`](crate::DropReason) code.
        reason: u8,
        /// A [`Program`](crate::Program) code.
        program: u8,
        /// Zero.
        _pad: [u8; 7],
    }

    /// The number of events that a CPU has written in the current second.
    #[derive(Default)]
    pub struct EventBudget {
        /// When the second began, `CLOCK_MONOTONIC`, in nanoseconds.
        began_ns: u64,
        /// Events written since.
        written: u64,
    }
}

impl Config {
    /// IP-in-IP packets (protocol 4) whose outer source is not a peer go to the host. Otherwise they are dropped.
    pub const FOREIGN_IPIP_PASS: u32 = 1;
}

impl Pod {
    /// All packets from and to the pod take the host stack, because the qdiscs that limit its bandwidth are there.
    #[cfg(not(feature = "next-abi"))]
    pub const HOST_STACK: u32 = 1;
    /// The same, in the build that tests use as the next version.
    #[cfg(feature = "next-abi")]
    pub const HOST_STACK: u32 = 0x8000_0000;

    /// Whether the pod's packets take the host stack.
    #[inline(always)]
    pub const fn takes_host_stack(&self) -> bool {
        self.flags & Self::HOST_STACK != 0
    }
}

impl RouteKey {
    /// A prefix of `prefix_len` bits.
    pub const fn new(prefix: Addr, prefix_len: u32) -> Self {
        Self { prefix_len, prefix }
    }
}

impl Route {
    /// The prefix is a pod CIDR.
    pub const PODS: u8 = 1;
    /// The prefix is a node's InternalIP.
    pub const NODE: u8 = 2;

    /// A prefix of `kind` that belongs to `peer`.
    pub const fn new(peer: u16, kind: u8) -> Self {
        Self {
            peer,
            kind,
            _pad: 0,
        }
    }
}

impl Peer {
    /// `next_hop_mac` and `uplink_mac` are known.
    pub const MAC_KNOWN: u8 = 1;
    /// The path goes to the peer's public endpoint: clouds bill what is sent on it.
    pub const PUBLIC: u8 = 2;

    /// Whether the path goes to the peer's public endpoint.
    #[inline(always)]
    pub const fn is_public(&self) -> bool {
        self.flags & Self::PUBLIC != 0
    }

    /// Sum (RFC 1071, not folded, of 16-bit words in network order) of the outer header's fields that are
    /// the same in every packet to a peer: version and header length, DF, time to live, protocol, addresses. A
    /// program adds the other fields. 0 if the encapsulation has no outer header.
    pub const fn partial_sum(source: Addr, destination: Addr, encapsulation: Encapsulation) -> u32 {
        const fn words(address: Addr) -> u32 {
            let bits = address.to_bits();
            (bits >> 16) + (bits & 0xffff)
        }
        let Some(protocol) = encapsulation.outer_protocol() else {
            return 0;
        };
        ((OUTER_VERSION_IHL as u32) << 8)
            + OUTER_FRAGMENT as u32
            + ((OUTER_TTL as u32) << 8 | protocol as u32)
            + words(source)
            + words(destination)
    }
}

impl NodeAddr {
    /// An address of this node: tunnel packets to it, and packets to it inside the tunnel, are for this node.
    pub const OWN: u8 = 1;
    /// The outer source of the peer's packets.
    pub const UNDERLAY: u8 = 2;
    /// With [`Self::OWN`]: other nodes do not know the address, because NAT translates an address that they know to it.
    /// So only tunnel packets are for it, no packets inside the tunnel.
    pub const TUNNEL_ONLY: u8 = 4;
    /// The peer's public endpoint: clouds bill what comes from it.
    pub const PUBLIC: u8 = 8;

    /// Whether the address is the peer's public endpoint.
    #[inline(always)]
    pub const fn is_public(&self) -> bool {
        self.flags & Self::PUBLIC != 0
    }

    /// An address of `peer` with these roles.
    pub const fn new(peer: u16, flags: u8) -> Self {
        Self {
            peer,
            flags,
            _pad: 0,
        }
    }
}

impl FlowKey {
    /// The canonical key of a packet's flow, the same in both directions, and whether the packet goes from the
    /// key's low end to its high end.
    #[inline(always)]
    pub fn canonical(
        source: Addr,
        source_port: [u8; 2],
        destination: Addr,
        destination_port: [u8; 2],
        protocol: u8,
    ) -> (Self, bool) {
        let rank = |address: Addr, port| {
            (address.to_bits() as u64) << 16 | u16::from_be_bytes(port) as u64
        };
        let from_low = rank(source, source_port) <= rank(destination, destination_port);
        let (low, low_port, high, high_port) = if from_low {
            (source, source_port, destination, destination_port)
        } else {
            (destination, destination_port, source, source_port)
        };
        (
            Self {
                low,
                high,
                low_port,
                high_port,
                protocol,
                family: FAMILY_IPV4,
                _pad: [0; 2],
            },
            from_low,
        )
    }
}

impl Flow {
    /// The recorded packet went from `low` to `high`; otherwise from `high` to `low`.
    pub const FROM_LOW: u32 = 1;
    /// A TCP connection that one end has closed.
    pub const CLOSED: u32 = 2;

    /// A flow whose recorded packet went from `low` to `high`, or the other way.
    #[inline(always)]
    pub const fn new(from_low: bool) -> Self {
        Self {
            flags: from_low as u32,
        }
    }

    /// Whether the recorded packet went from `low` to `high`.
    #[inline(always)]
    pub const fn from_low(&self) -> bool {
        self.flags & Self::FROM_LOW != 0
    }
}

impl PeerInfo {
    /// Another node has the same InternalIP and keeps it, so the peer's InternalIP gets no route.
    pub const INTERNAL_IP_SHARED: u8 = 1;
    /// An InternalIP of the peer stays with this node's own network, so it gets no route.
    pub const INTERNAL_IP_IS_LOCAL: u8 = 2;
    /// A pod CIDR of the peer contains an address of this node's own network, so it gets no route.
    pub const POD_CIDR_HOLDS_HOST: u8 = 4;
    /// A value of the peer's publicEndpoint is invalid or contradicts an older claim, so it is not used.
    pub const ENDPOINT_LEFT_OUT: u8 = 8;
    /// A value of the peer's internalIPs is invalid or contradicts an older claim, so it is not used.
    pub const INTERNAL_IP_LEFT_OUT: u8 = 16;
    /// A value of the peer's podCIDRs is invalid or contradicts an older claim, so it is not used.
    pub const POD_CIDR_LEFT_OUT: u8 = 32;
    /// A machine of this node's own network has an InternalIP of the peer, too. The InternalIP leads to the peer.
    pub const LAN_CONFLICT: u8 = 64;

    /// A peer's name, state and notes. The name is cut after 253 bytes.
    pub fn new(name: &str, state: u8, notes: u8) -> Self {
        let mut bytes = [0; 253];
        let len = name.len().min(bytes.len());
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self {
            state,
            notes,
            name_len: len as u8,
            name: bytes,
        }
    }

    /// The node's name, or `?` if it is not UTF-8.
    pub fn name(&self) -> &str {
        let len = (self.name_len as usize).min(self.name.len());
        core::str::from_utf8(&self.name[..len]).unwrap_or("?")
    }
}

impl DropEvent {
    /// An event whose fields are all zero.
    pub const ZERO: Self = Self {
        at_ns: 0,
        ifindex: 0,
        len: 0,
        source: Addr([0; 4]),
        destination: Addr([0; 4]),
        source_port: [0; 2],
        destination_port: [0; 2],
        peer: 0,
        protocol: 0,
        reason: 0,
        program: 0,
        _pad: [0; 7],
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_a_flow_have_one_key_and_opposite_sides() {
        let (a, b) = (Addr([10, 0, 0, 9]), Addr([10, 0, 0, 200]));
        let (there, from_low) = FlowKey::canonical(a, [0x90, 1], b, [0, 80], 6);
        let (back, back_from_low) = FlowKey::canonical(b, [0, 80], a, [0x90, 1], 6);
        assert_eq!(there, back);
        assert!(from_low && !back_from_low);
    }

    #[test]
    fn a_name_longer_than_the_field_is_cut() {
        let name = core::str::from_utf8(&[b'n'; 300]).unwrap();
        assert_eq!(PeerInfo::new(name, 0, 0).name().len(), 253);
    }

    #[test]
    fn the_partial_sum_is_that_of_an_outer_header_whose_other_fields_are_zero() {
        let (source, destination) = (Addr([10, 0, 0, 11]), Addr([203, 0, 113, 21]));
        for (encapsulation, protocol) in [(Encapsulation::Ipip, 4), (Encapsulation::Udp, 17)] {
            let [fragment, offset] = OUTER_FRAGMENT.to_be_bytes();
            let mut header = [0; 20];
            header[0] = OUTER_VERSION_IHL;
            header[6..10].copy_from_slice(&[fragment, offset, OUTER_TTL, protocol]);
            header[12..16].copy_from_slice(&source.0);
            header[16..20].copy_from_slice(&destination.0);
            let words = header.chunks_exact(2);
            let sum: u32 = words
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
                .sum();
            assert_eq!(Peer::partial_sum(source, destination, encapsulation), sum);
        }
        assert_eq!(
            Peer::partial_sum(source, destination, Encapsulation::Direct),
            0
        );
    }
}
