//! What arrives on an uplink: tunnel packets of peers, packets of peers without a tunnel, and everything else.

use super::{Sent, TUNNELS, Treatment, UDP, drops, mss, pass, unless, unusable};
use crate::{
    ipv4::{Ipv4, with_ecn, with_ttl},
    world::{self, OWN, POD_MAC, PROBE, owner, peer},
};
use ipip_abi::{Addr, Counter, DEFAULT_UDP_PORT, DropReason, NEVER_POD_RANGES, Route};

pub fn from_uplink(bytes: &[u8], foreign_ipip: bool) -> Vec<Treatment> {
    let Some(outer) = Ipv4::read(bytes).filter(Ipv4::is_valid) else {
        return unusable();
    };
    let port = outer.udp_destination();
    // Not a datagram (RFC 768). Whether the bytes after it are taken for its port is open.
    if outer.protocol() == UDP && !outer.is_later_fragment() && outer.payload().len() < 8 {
        let mut valid = plain(&outer, &[]);
        valid.extend(plain(&outer, &[Counter::NotOurTunnelAddress]));
        if world::receives_tunnel(outer.destination()) {
            valid.extend(unusable());
        }
        return valid;
    }
    let is_tunnel = outer.protocol() == 4 || port == Some(DEFAULT_UDP_PORT);
    if !is_tunnel {
        return plain(&outer, &[]);
    }
    if !world::receives_tunnel(outer.destination()) {
        return plain(&outer, &[Counter::NotOurTunnelAddress]);
    }
    from_tunnel(&outer, foreign_ipip)
}

/// A packet outside of a tunnel.
fn plain(packet: &Ipv4, counters: &[Counter]) -> Vec<Treatment> {
    let (source, destination) = (packet.source(), packet.destination());
    if let Some((index, kind)) = owner(source)
        && index != 0
        && peer(index).is_direct()
    {
        return from_direct(packet, index, kind, counters);
    }
    // Routers on the way to a peer without a tunnel report errors to the pod that sent the packet.
    if world::is_pod(destination)
        && let Some(index) = direct_peer_in_quote(packet)
        && !matches!(owner(source), Some((_, Route::PODS)))
    {
        let mut faults = inner_faults(packet, index);
        faults.retain(|it| *it != DropReason::InnerSourceNotOfPeer);
        return unless(faults, || to_pod(packet));
    }
    let mut faults = Vec::new();
    if matches!(owner(source), Some((_, Route::PODS))) {
        faults.push(DropReason::UnencapsulatedPodSource);
        if destination == PROBE {
            faults.push(DropReason::ProbeNotAuthentic);
        }
    }
    if world::is_pod(destination) {
        faults.push(DropReason::UnencapsulatedToPod);
    }
    if is_behind_a_tunnel(destination) {
        faults.push(DropReason::UnencapsulatedToPeer);
    }
    unless(faults, || passed(packet, counters))
}

/// A packet that passes to the host. An ICMP error about a tunnel packet of this node is counted (RFC 1191).
fn passed(packet: &Ipv4, counters: &[Counter]) -> Vec<Treatment> {
    let hint = || pass(&[Counter::MtuHint]);
    let quote = |message: &[u8]| message.get(8..).is_some_and(is_own_tunnel_packet);
    let all = &packet.all()[packet.header_len()..];
    let is_error = packet.protocol() == 1 && !packet.is_fragment() && all.starts_with(&[3, 4]);
    // RFC 792: at least 8 bytes behind the header are quoted. Whether fewer, or bytes behind the packet, count is open.
    match packet.payload().len() >= 8 + 28 {
        true if is_error && quote(packet.payload()) => hint(),
        false if is_error && quote(all) => [hint(), pass(counters)].concat(),
        _ => pass(counters),
    }
}

/// Whether an ICMP error quotes a packet that this node sent to a peer in a tunnel.
fn is_own_tunnel_packet(quoted: &[u8]) -> bool {
    let Some(packet) = Ipv4::read(quoted) else {
        return false;
    };
    let is_tunnel = match packet.protocol() {
        4 => true,
        UDP => quoted.get(22..24) == Some(&DEFAULT_UDP_PORT.to_be_bytes()),
        _ => false,
    };
    is_tunnel
        && (packet.version(), packet.header_len()) == (4, 20)
        && world::receives_tunnel(packet.source())
        && world::by_underlay(packet.destination()).is_some()
}

/// The direct peer to which the destination sent the packet that this ICMP error quotes (RFC 792).
fn direct_peer_in_quote(packet: &Ipv4) -> Option<u16> {
    let message = packet.payload();
    let is_error = packet.protocol() == 1 && matches!(message.first(), Some(3 | 4 | 5 | 11 | 12));
    let quoted = Ipv4::read(message.get(8..)?)?;
    if !is_error || packet.is_fragment() || quoted.source() != packet.destination() {
        return None;
    }
    let (index, _) = owner(quoted.destination()).filter(|(index, _)| *index != 0)?;
    peer(index).is_direct().then_some(index)
}

/// Whether the host routes the address to a peer: it is a pod, or an InternalIP of another realm.
fn is_behind_a_tunnel(address: Addr) -> bool {
    match owner(address) {
        None | Some((0, _)) => false,
        Some((_, Route::PODS)) => true,
        Some((index, _)) => peer(index).underlay() != Some(address),
    }
}

/// A packet whose source belongs to a peer that sends without an outer header.
fn from_direct(packet: &Ipv4, index: u16, kind: u8, counters: &[Counter]) -> Vec<Treatment> {
    let destination = packet.destination();
    if world::is_pod(destination) {
        return unless(inner_faults(packet, index), || to_pod(packet));
    }
    // The node's own connections are like those of any host of the network.
    if kind == Route::NODE {
        return match is_behind_a_tunnel(destination) {
            true => drops([
                DropReason::InnerDestinationNotLocal,
                DropReason::UnencapsulatedToPeer,
            ]),
            false => passed(packet, counters),
        };
    }
    let mut faults = inner_faults(packet, index);
    if is_behind_a_tunnel(destination) {
        faults.push(DropReason::UnencapsulatedToPeer);
    }
    // On the way to the node itself nothing routes the packet.
    if destination == OWN {
        let mut valid = unless(faults, || to_host(packet, Counter::TunnelToHost));
        valid.extend(pass(counters));
        return valid;
    }
    drops(faults)
}

/// A tunnel packet to an address at which this node receives them.
fn from_tunnel(outer: &Ipv4, foreign_ipip: bool) -> Vec<Treatment> {
    let is_udp = outer.protocol() == UDP;
    let source = outer.source();
    let Some(from) = world::by_underlay(source) else {
        let is_pods = matches!(owner(source), Some((_, Route::PODS)));
        let is_probe = Ipv4::read(&outer.payload()[if is_udp { 8 } else { 0 }..])
            .is_some_and(|inner| inner.destination() == PROBE);
        if foreign_ipip && !is_udp && !is_pods {
            let mut valid = pass(&[Counter::ForeignIpipPassed]);
            if is_probe {
                valid.extend(drops([DropReason::ProbeNotAuthentic]));
            }
            return valid;
        }
        let mut faults = vec![DropReason::UnknownPeer];
        if is_probe {
            faults.push(DropReason::ProbeNotAuthentic);
        }
        faults.extend(outer_faults(outer));
        if is_pods {
            // The pods of a direct peer send ordinary packets, but none that a node takes for a tunnel's.
            faults.extend([
                DropReason::UnencapsulatedPodSource,
                DropReason::NestedTunnel,
            ]);
            faults.extend(inner_faults(outer, 0));
        }
        return drops(faults);
    };
    let mut faults = outer_faults(outer);
    let mut bytes = outer.payload();
    if is_udp {
        // The length of the datagram says nothing new: the inner packet must fill the outer one.
        bytes = &bytes[8..];
    }
    let Some(inner) = Ipv4::read(bytes) else {
        faults.extend([
            DropReason::Truncated,
            DropReason::InnerHeaderTooShort,
            DropReason::InnerLengthBeyondOuter,
            DropReason::InnerNotIpv4,
        ]);
        return drops(faults);
    };
    faults.extend(inner_faults(&inner, from.index));
    if is_udp && inner.total_len() < bytes.len() {
        faults.push(DropReason::InnerShorterThanDatagram);
    }
    let ecn = match (inner.ecn(), outer.ecn()) {
        (0, 3) => {
            faults.push(DropReason::EcnNotCapable);
            0
        }
        (0, _) => 0,
        (3, _) | (_, 3) => 3,
        // RFC 6040, figure 4: ECT(1) outside changes ECT(0) inside.
        (2, 1) => 1,
        (inner, _) => inner,
    };
    unless(faults, || {
        let whole = with_ecn(&[bytes, outer.after()].concat(), ecn);
        let packet = Ipv4::read(&whole).expect("it was read");
        if inner.destination() == OWN {
            to_host(&packet, Counter::TunnelToHost)
        } else {
            to_pod(&packet)
        }
    })
}

fn outer_faults(outer: &Ipv4) -> Vec<DropReason> {
    let mut faults = Vec::new();
    if outer.is_fragment() {
        faults.push(DropReason::OuterFragment);
    }
    if outer.header_len() != 20 {
        faults.push(DropReason::OuterOptions);
    }
    faults
}

/// The faults of a packet that a peer sends.
fn inner_faults(packet: &Ipv4, from: u16) -> Vec<DropReason> {
    let mut faults = Vec::new();
    let mut fault = |is_one: bool, reason| {
        if is_one {
            faults.push(reason);
        }
    };
    let (source, destination) = (packet.source(), packet.destination());
    fault(packet.version() != 4, DropReason::InnerNotIpv4);
    let is_short = packet.header_len() < 20 || packet.total_len() < packet.header_len();
    fault(is_short, DropReason::InnerHeaderTooShort);
    let is_beyond = packet.total_len() > packet.len() || packet.header_len() > packet.len();
    fault(is_beyond, DropReason::InnerLengthBeyondOuter);
    fault(packet.header_len() > packet.len(), DropReason::Truncated);
    // A header that claims to be longer than its packet.
    fault(
        packet.header_len() > packet.len(),
        DropReason::InnerHeaderTooShort,
    );
    let is_broken = packet.header_len() < 20 || !packet.checksum_is_correct();
    fault(is_broken, DropReason::InnerBadChecksum);
    fault(
        [source, destination].into_iter().any(is_martian),
        DropReason::InnerMartian,
    );
    fault(source == destination, DropReason::InnerSourceIsDestination);
    fault(
        TUNNELS.contains(&packet.protocol()),
        DropReason::NestedTunnel,
    );
    let is_own = owner(source).is_some_and(|(index, _)| index == from);
    fault(!is_own, DropReason::InnerSourceNotOfPeer);
    let is_local = world::is_pod(destination) || destination == OWN;
    fault(!is_local, DropReason::InnerDestinationNotLocal);
    fault(destination == PROBE, DropReason::ProbeNotAuthentic);
    // RFC 791: a packet whose TTL is 0 is destroyed. With 1 it still reaches the node itself.
    fault(packet.ttl() == 0, DropReason::TtlExpired);
    faults
}

fn is_martian(address: Addr) -> bool {
    NEVER_POD_RANGES.iter().any(|&(range, len)| {
        let mask = u32::MAX << (32 - u32::from(len));
        (address.to_bits() ^ range.to_bits()) & mask == 0
    })
}

/// Delivery to a pod.
fn to_pod(packet: &Ipv4) -> Vec<Treatment> {
    let mut valid = Vec::new();
    if packet.is_fragment() {
        valid.extend(to_host(packet, Counter::FragmentToStack));
    }
    if packet.destination() == world::LIMITED {
        valid.extend(to_host(packet, Counter::LimitedToStack));
    }
    // The host is a router on the way, and answers.
    if packet.ttl() == 1 {
        valid.extend(to_host(packet, Counter::TtlToStack));
    }
    if valid.is_empty() {
        let (bytes, counters) = with_lower_mss(packet, Counter::TunnelToPod);
        valid.push(Treatment::Send(Sent {
            counters,
            macs: (Some(POD_MAC), Some(world::HOST_MAC)),
            outer: None,
            packet: with_ttl(&bytes, packet.ttl().wrapping_sub(1)),
        }));
    }
    valid
}

/// Delivery to the host, which routes.
fn to_host(packet: &Ipv4, counter: Counter) -> Vec<Treatment> {
    let (packet, counters) = with_lower_mss(packet, counter);
    vec![Treatment::Send(Sent {
        counters,
        macs: (Some(world::IPIP0_MAC), None),
        outer: None,
        packet,
    })]
}

/// The packet with an MSS that the path back carries, and the counters of its delivery.
fn with_lower_mss(packet: &Ipv4, counter: Counter) -> (Vec<u8>, Vec<Counter>) {
    match mss::lowered(packet) {
        Some(lowered) => (lowered, vec![counter, Counter::MssClamped]),
        None => (packet.all().to_vec(), vec![counter]),
    }
}
