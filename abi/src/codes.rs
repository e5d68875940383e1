//! Codes in maps and events. They are append-only: a retired code stays reserved.

use crate::wire::{OUTER_IP_LEN, OUTER_IP_UDP_LEN, PROTO_IPIP, PROTO_UDP};

/// A number in a map or event for which this version has no variant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnknownCode(pub u32);

/// An enum of stable codes. Each row gives a code's number, its name (the variant's, or the word after `as`) and
/// its text.
macro_rules! codes {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($variant:ident = $code:literal $(as $word:literal)?, $text:literal;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u8)]
        $vis enum $name {
            $(#[doc = $text] $variant = $code,)*
        }

        impl $name {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// Length of an array that is indexed by this code. Codes are in ascending order.
            pub const ARRAY_LEN: u32 = Self::ALL[Self::ALL.len() - 1] as u32 + 1;

            /// The name, as commands, logs and the configuration write it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => codes!(@name $variant $($word)?),)* }
            }

            /// One phrase that explains the code.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl TryFrom<u8> for $name {
            type Error = UnknownCode;

            fn try_from(code: u8) -> Result<Self, UnknownCode> {
                match code {
                    $($code => Ok(Self::$variant),)*
                    _ => Err(UnknownCode(code as u32)),
                }
            }
        }
    };
    (@name $variant:ident) => { stringify!($variant) };
    (@name $variant:ident $word:literal) => { $word };
}

codes! {
    /// Why the datapath dropped a packet. 0 is reserved.
    pub enum DropReason {
        UnknownPeer = 1, "tunnel packet whose outer source is not a peer's";
        InnerSourceNotOfPeer = 2, "inner source does not belong to the peer that sent the packet";
        InnerDestinationNotLocal = 3, "inner destination is neither a pod of this node nor the node";
        InnerMartian = 4, "inner address of a range that is never routed (loopback, link-local, multicast, ...)";
        InnerSourceIsDestination = 5, "inner source equals inner destination";
        NestedTunnel = 6, "another tunnel (protocol 4, 41 or 47) inside the tunnel";
        InnerNotIpv4 = 7, "inner IP version is not 4";
        InnerHeaderTooShort = 8, "inner header length is below 20 bytes";
        InnerLengthBeyondOuter = 9, "inner total length exceeds the payload of the outer packet";
        InnerBadChecksum = 10, "inner header checksum is wrong";
        TtlExpired = 11, "inner time to live is 0";
        Truncated = 12, "packet ends before its headers do";
        OuterFragment = 13, "outer packet is a fragment";
        OuterOptions = 14, "outer header has options";
        EcnNotCapable = 15, "outer header has a congestion mark, but the inner transport does not support ECN (RFC 6040)";
        PodSourceSpoofed = 16, "pod sent a packet with a source address that is not its own";
        PodSendsTunnel = 17, "pod sent a tunnel packet (protocol 4, 41, 47 or the tunnel's UDP port) to a node";
        PodNotIpv4 = 18, "pod sent something other than untagged IPv4 or ARP";
        UnencapsulatedPodSource = 19, "un-encapsulated packet from an uplink with a pod's source address";
        NoRoute = 20, "packet routed into ipip0 for which the datapath has no route to a peer";
        PeerUnreachable = 21, "the peer has no path";
        RewriteFailed = 22, "the kernel refused to change the packet";
        LengthOverflow = 23, "with its outer header the packet would be longer than 65,535 bytes";
        UnencapsulatedToPod = 24, "un-encapsulated packet from an uplink for a pod of this node";
        InnerShorterThanDatagram = 25, "datagram of the tunnel has more bytes than its inner packet: several datagrams were merged";
        PodArp = 26, "pod sent ARP other than a request for its gateway or a reply about its own address";
        UnencapsulatedToPeer = 27, "un-encapsulated packet from an uplink for a pod, or an InternalIP of another realm, that only this node's tunnel reaches";
        PriorityTags = 28, "frame from an uplink with several VLAN tags of ID 0";
        OuterHeaderInvalid = 29, "outer header of a tunnel packet has a wrong version, header length or checksum";
        ProbeNotAuthentic = 30, "packet to this node's probe address that is no authentic probe or answer";
        ProbeReplayed = 31, "authentic probe or answer that is not newer than the last one";
        ProbeLimited = 32, "authentic probe beyond the rate at which a peer is answered";
    }
}

codes! {
    /// What happened to packets that were not dropped, and changes of the state that the programs keep.
    pub enum Counter {
        PodToPod = 0, "pod to pod on this node, veth to veth";
        PodToTunnel = 1, "pod to a peer, bypassing the host stack";
        HostToTunnel = 2, "host stack to a peer, through ipip0";
        TunnelToPod = 3, "peer to pod, bypassing the host stack";
        TunnelToHost = 4, "peer to this node, into the host stack";
        PodToStack = 5, "pod to the host stack";
        FlowToStack = 6, "reply of a flow that came out of the host stack, sent through the host stack (slow path)";
        FragmentToStack = 7, "fragment, sent through the host stack";
        OversizeToStack = 8, "larger than the path's MTU, sent to the host stack, which answers";
        TtlToStack = 9, "time to live expired, sent to the host stack, which answers";
        FlowRecorded = 10, "flow that left the host stack was recorded";
        FlowForgotten = 11, "stale flow entry was deleted";
        NeighbourFallback = 12, "next hop's MAC was not known, or no agent has confirmed it for a minute, so the kernel looked it up";
        NotOurTunnelAddress = 13, "tunnel packet for an address that is not this node's, passed";
        ForeignIpipPassed = 14, "IP-in-IP packet from no peer, passed to the host (foreignIpip: pass)";
        EventSuppressed = 15, "drop whose event the rate limit suppressed";
        Reencapsulated = 16, "packet that was decapsulated on this node was encapsulated again";
        LimitedToStack = 17, "from or to a pod with limited bandwidth, sent through the host stack, whose qdiscs limit it";
        ArpAnswered = 18, "ARP request of a pod for its gateway, answered";
        ArpIgnored = 19, "duplicate-address probe or gratuitous ARP of a pod, dropped without an event";
        PodMacLearned = 20, "ARP packet of a pod that stated a new MAC of the pod's address, which was stored";
        LargeSegmented = 21, "GSO packet that cannot be encapsulated whole, sent through the host stack (if it is a pod's) and segmented on ipip0 first; a pod's counts twice";
        ProbeSent = 22, "probe of a path, sent";
        ProbeAnswered = 23, "authentic probe of a peer, answered";
        AnswerReceived = 24, "authentic answer to a probe";
        MssClamped = 25, "TCP SYN to or from a peer whose MSS was lowered to the path's";
        MtuHint = 26, "ICMP fragmentation needed that quotes a tunnel packet of this node, passed to the host; the agent probes the path";
    }
}

codes! {
    /// How a packet travels to a peer.
    pub enum Encapsulation {
        None = 0 as "none", "no path";
        Ipip = 1 as "ipip", "IP in IP (protocol 4)";
        Udp = 2 as "udp", "IP in UDP (foo-over-UDP)";
        Direct = 3 as "direct", "no outer header: nodes on one L2 network, or a fabric that routes pod addresses";
    }
}

codes! {
    /// A path that could be used to a peer, by its number in `CANDIDATES`. Both ends give it the same number.
    pub enum Candidate {
        PrivateIpip = 0 as "private-ipip", "to the InternalIP, IP in IP";
        PrivateUdp = 1 as "private-udp", "to the InternalIP, IP in UDP";
        PublicIpip = 2 as "public-ipip", "to the public endpoint, IP in IP";
        PublicUdp = 3 as "public-udp", "to the public endpoint, IP in UDP";
        Direct = 4 as "direct", "no outer header";
    }
}

codes! {
    /// Whether a peer can be reached, and if not, why.
    pub enum PeerState {
        Reachable = 0, "reachable";
        OwnNode = 1, "this node";
        NoPublicEndpoint = 2, "the peer is in another realm and has no publicEndpoint: set one for it";
        NoInternalIp = 3, "the peer, or this node, has no internalIPs: set them";
        NoUnderlayRoute = 4, "no route of this host leads to its underlay address";
        OwnAddress = 5, "its underlay address is an address of this node";
        NoOwnPublicEndpoint = 6, "the peer is in another realm and cannot answer, because this node has no publicEndpoint that it may use: set one";
        NotProven = 7, "no path to it has answered a probe yet: it is down, or a firewall drops packets on the way, or it has no publicEndpoint";
    }
}

impl DropReason {
    /// Whether the reason concerns the packet inside the tunnel. Its event then has that packet's addresses.
    pub const fn is_about_inner(self) -> bool {
        !matches!(
            self,
            Self::UnknownPeer | Self::OuterFragment | Self::OuterOptions | Self::Truncated
        )
    }
}

impl Encapsulation {
    /// The encapsulation that `word` selects in a configuration: `ipip`, `udp` or `direct`. `none` cannot be
    /// selected; it marks a peer without a path.
    pub fn by_name(word: &str) -> Option<Self> {
        let choices = [Self::Ipip, Self::Udp, Self::Direct];
        choices.into_iter().find(|choice| choice.name() == word)
    }

    /// Bytes of outer headers that the encapsulation adds to each packet.
    pub const fn overhead(self) -> u16 {
        match self {
            Self::Ipip => OUTER_IP_LEN as u16,
            Self::Udp => OUTER_IP_UDP_LEN as u16,
            Self::None | Self::Direct => 0,
        }
    }

    /// The protocol number in the outer header; none if there is no outer header.
    pub const fn outer_protocol(self) -> Option<u8> {
        match self {
            Self::Ipip => Some(PROTO_IPIP),
            Self::Udp => Some(PROTO_UDP),
            Self::None | Self::Direct => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{format, string::String, vec::Vec};

    /// The assigned codes: extend the list, never change it.
    const DROP_REASONS: &str = "1 UnknownPeer, 2 InnerSourceNotOfPeer, \
        3 InnerDestinationNotLocal, 4 InnerMartian, 5 InnerSourceIsDestination, 6 NestedTunnel, \
        7 InnerNotIpv4, 8 InnerHeaderTooShort, 9 InnerLengthBeyondOuter, 10 InnerBadChecksum, \
        11 TtlExpired, 12 Truncated, 13 OuterFragment, 14 OuterOptions, 15 EcnNotCapable, \
        16 PodSourceSpoofed, 17 PodSendsTunnel, 18 PodNotIpv4, 19 UnencapsulatedPodSource, \
        20 NoRoute, 21 PeerUnreachable, 22 RewriteFailed, 23 LengthOverflow, \
        24 UnencapsulatedToPod, 25 InnerShorterThanDatagram, 26 PodArp, 27 UnencapsulatedToPeer, \
        28 PriorityTags, 29 OuterHeaderInvalid, 30 ProbeNotAuthentic, 31 ProbeReplayed, \
        32 ProbeLimited";

    #[test]
    fn drop_reasons_keep_their_codes() {
        let codes: Vec<String> = DropReason::ALL
            .iter()
            .map(|&reason| format!("{} {}", reason as u8, reason.name()))
            .collect();
        assert_eq!(codes.join(", "), DROP_REASONS);
    }

    #[test]
    fn every_code_is_read_back_from_its_number() {
        for &reason in DropReason::ALL {
            assert_eq!(DropReason::try_from(reason as u8), Ok(reason));
            assert!((reason as u32) < DropReason::ARRAY_LEN);
        }
        assert_eq!(DropReason::try_from(0), Err(UnknownCode(0)));
        assert_eq!(Counter::ARRAY_LEN as usize, Counter::ALL.len());
    }

    #[test]
    fn every_encapsulation_but_none_is_found_by_its_name() {
        for encapsulation in [
            Encapsulation::Ipip,
            Encapsulation::Udp,
            Encapsulation::Direct,
        ] {
            assert_eq!(
                Encapsulation::by_name(encapsulation.name()),
                Some(encapsulation)
            );
        }
        assert_eq!(Encapsulation::by_name("none"), None);
    }
}
