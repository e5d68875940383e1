//! Packet formats: protocol numbers, header lengths, and the fields of an outer header
//! that are the same in every packet.
//!
//! The programs write outer headers from these constants, and user space sums them up beforehand
//! ([`Peer::partial_sum`](crate::Peer::partial_sum)). Numbers are in host byte order, lengths in bytes.

/// ICMP (RFC 792).
pub const PROTO_ICMP: u8 = 1;
/// IPv4 in IPv4 (RFC 2003).
pub const PROTO_IPIP: u8 = 4;
/// TCP (RFC 9293).
pub const PROTO_TCP: u8 = 6;
/// UDP (RFC 768).
pub const PROTO_UDP: u8 = 17;
/// IPv6 in IPv4 (RFC 4213).
pub const PROTO_IPV6: u8 = 41;
/// GRE (RFC 2784).
pub const PROTO_GRE: u8 = 47;
/// SCTP (RFC 9260).
pub const PROTO_SCTP: u8 = 132;

/// Length of an Ethernet header without a VLAN tag (IEEE 802.3).
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options (RFC 791).
pub const IPV4_LEN: usize = 20;
/// Length of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Length of a TCP header without options (RFC 9293).
pub const TCP_LEN: usize = 20;
/// The largest value of IPv4's 16-bit total length.
pub const MAX_IPV4_LEN: usize = 65_535;

/// Length of the outer headers of the `ipip` encapsulation: IPv4.
pub const OUTER_IP_LEN: usize = IPV4_LEN;
/// Length of the outer headers of the `udp` encapsulation: IPv4 and UDP.
pub const OUTER_IP_UDP_LEN: usize = IPV4_LEN + UDP_LEN;

/// First byte of an outer header: version 4, and a length of five words because it has no options.
pub const OUTER_VERSION_IHL: u8 = 0x45;
/// Flags and fragment offset of an outer header: DF, so that a router whose next link is too small sends an
/// ICMP error (RFC 1191) instead of fragments.
pub const OUTER_FRAGMENT: u16 = 0x4000;
/// Time to live of outer headers: the default of Linux and of RFC 1700.
///
/// The feature `other-outer-ttl` changes it, for the test that proves that the programs and user space both
/// follow this constant.
pub const OUTER_TTL: u8 = if cfg!(feature = "other-outer-ttl") {
    61
} else {
    64
};

/// UDP port of the `udp` encapsulation (foo-over-UDP) unless configured otherwise.
pub const DEFAULT_UDP_PORT: u16 = 5555;
