//! What each program must do with a packet, by the documents alone: ARCHITECTURE.md, SECURITY.md, the tables of reasons
//! and counters, the decisions, and the RFCs. It is written without the sources of the programs and shares no code
//! with them, so a fault has to be made twice to stay hidden. Do not look at `ebpf/` when you change it.
//!
//! The order of checks is not part of the contract: a packet with several faults may be dropped for each of them.

use crate::{
    ipv4::{Arp, Ipv4, with_ecn, with_ttl},
    world::{self, OWN, POD, POD_MAC, owner, peer},
};
use ipip_abi::{
    Addr, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, NEVER_POD_RANGES, POD_GATEWAY,
    POD_GATEWAY_MAC, Program, Route,
};

/// Protocols of tunnels: IPv4 in IPv4, IPv6 in IPv4, GRE.
const TUNNELS: [u8; 3] = [4, 41, 47];
const UDP: u8 = 17;

/// One valid treatment of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Treatment {
    /// It goes on to the kernel unchanged; exactly these counters move.
    Pass(Vec<Counter>),
    /// It is dropped, and exactly this reason counts.
    Drop(DropReason),
    /// It is dropped without a reason; exactly these counters move.
    Ignore(Vec<Counter>),
    /// The kernel refuses the change that the program decided on: the counters of the decision move, and the reason.
    Refused(Vec<Counter>, DropReason),
    /// It leaves through another interface.
    Send(Sent),
}

/// A packet that the program sends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The counters that move.
    pub counters: Vec<Counter>,
    /// Destination and source MAC, where they are known.
    pub macs: (Option<Mac>, Option<Mac>),
    /// The outer header.
    pub outer: Option<Outer>,
    /// The packet, without the outer header, with all bytes that follow it.
    pub packet: Vec<u8>,
}

/// The fields of an outer header that depend on the packet and its peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outer {
    pub destination: Addr,
    pub encapsulation: Encapsulation,
    pub tos: u8,
}

/// Settings of the node and circumstances of the packet that the frame does not show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    /// IP-in-IP from no peer goes to the host.
    pub foreign_ipip: bool,
    /// The metadata says that this is a GSO packet: its segments decide whether it fits a path.
    pub is_gso: bool,
    /// VLAN IDs of the frame, outermost first; the frame is without these tags.
    pub vlans: [Option<u16>; 2],
}

/// All valid treatments of `frame`, which has no VLAN tags.
pub fn judge(program: Program, frame: &[u8], at: Circumstances) -> Vec<Treatment> {
    let (ethertype, packet) = (&frame[12..14], &frame[14..]);
    let is_ipv4 = ethertype == [0x08, 0x00];
    let is_tagged = at.vlans[0].is_some() || ethertype == [0x81, 0] || ethertype == [0x88, 0xa8];
    match program {
        Program::FromUplink => match at.vlans {
            [Some(0), Some(0)] => drops([DropReason::PriorityTags]),
            [Some(0), None] | [None, _] if is_ipv4 => from_uplink(packet, at.foreign_ipip),
            _ => pass(&[]),
        },
        Program::FromPod if is_tagged => drops([DropReason::PodNotIpv4]),
        Program::FromPod if is_ipv4 => from_pod(packet, at.is_gso),
        Program::FromPod if ethertype == [0x08, 0x06] => arp(packet),
        Program::FromPod => drops([DropReason::PodNotIpv4]),
        Program::FromHost | Program::FromFarEnd if is_ipv4 && !is_tagged => from_host(packet),
        Program::FromHost | Program::FromFarEnd => drops([DropReason::NoRoute]),
        // It only records flows.
        Program::ToPod => pass(&[]),
    }
}

fn pass(counters: &[Counter]) -> Vec<Treatment> {
    vec![Treatment::Pass(counters.into())]
}

fn drops(reasons: impl IntoIterator<Item = DropReason>) -> Vec<Treatment> {
    reasons.into_iter().map(Treatment::Drop).collect()
}

/// The kernel of any receiver discards such a packet (RFC 791, RFC 1122), so a program may drop it or pass it to the
/// kernel. No program sends it on.
fn unusable() -> Vec<Treatment> {
    let counters = [
        vec![],
        vec![Counter::NotOurTunnelAddress],
        vec![Counter::ForeignIpipPassed],
    ];
    let passed = counters.into_iter().map(Treatment::Pass);
    let dropped = DropReason::ALL.iter().copied().map(Treatment::Drop);
    passed.chain(dropped).collect()
}

/// The reasons, or the treatment of a packet without fault.
fn unless(faults: Vec<DropReason>, good: impl FnOnce() -> Vec<Treatment>) -> Vec<Treatment> {
    if faults.is_empty() {
        good()
    } else {
        drops(faults)
    }
}

fn from_uplink(bytes: &[u8], foreign_ipip: bool) -> Vec<Treatment> {
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
    }
    if world::is_pod(destination) {
        faults.push(DropReason::UnencapsulatedToPod);
    }
    if is_behind_a_tunnel(destination) {
        faults.push(DropReason::UnencapsulatedToPeer);
    }
    unless(faults, || pass(counters))
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
            false => pass(counters),
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
        if foreign_ipip && !is_udp && !is_pods {
            return pass(&[Counter::ForeignIpipPassed]);
        }
        let mut faults = vec![DropReason::UnknownPeer];
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
        valid.push(Treatment::Send(Sent {
            counters: vec![Counter::TunnelToPod],
            macs: (Some(POD_MAC), Some(world::HOST_MAC)),
            outer: None,
            packet: with_ttl(packet.all(), packet.ttl().wrapping_sub(1)),
        }));
    }
    valid
}

/// Delivery to the host, which routes.
fn to_host(packet: &Ipv4, counter: Counter) -> Vec<Treatment> {
    vec![Treatment::Send(Sent {
        counters: vec![counter],
        macs: (Some(world::IPIP0_MAC), None),
        outer: None,
        packet: packet.all().to_vec(),
    })]
}

fn from_pod(bytes: &[u8], is_gso: bool) -> Vec<Treatment> {
    let Some(packet) = Ipv4::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::PodNotIpv4]);
    };
    if packet.version() != 4 {
        return drops([DropReason::PodNotIpv4]);
    }
    let (source, destination) = (packet.source(), packet.destination());
    let to = owner(destination);
    let mut faults = Vec::new();
    if source != POD {
        faults.push(DropReason::PodSourceSpoofed);
    }
    let port_is_ours = packet.udp_destination() == Some(DEFAULT_UDP_PORT);
    let is_tunnel = TUNNELS.contains(&packet.protocol());
    if world::is_node(destination) && (is_tunnel || port_is_ours) {
        faults.push(DropReason::PodSendsTunnel);
    }
    if is_tunnel && to.is_some_and(|(index, _)| index != 0) {
        faults.push(DropReason::NestedTunnel);
    }
    if !packet.is_valid() {
        // It harms only its sender and its receiver, whose kernels discard it.
        return if faults.iter().all(|it| *it == DropReason::NestedTunnel) {
            anything()
        } else {
            faults.extend([DropReason::Truncated, DropReason::PodNotIpv4]);
            drops(faults)
        };
    }
    // Not a datagram (RFC 768): whether the bytes after it are taken for its port is open.
    let is_cut = packet.protocol() == UDP && packet.payload().len() < 8;
    let mut valid = unless(faults.clone(), || accepted_from_pod(&packet, to, is_gso));
    if is_cut && world::is_node(destination) && faults.is_empty() {
        valid.extend(drops([DropReason::PodSendsTunnel]));
    }
    // The peer refuses it too, so the way there is open.
    if faults == [DropReason::NestedTunnel] {
        valid.extend(slow_path(&packet));
    }
    valid
}

/// The reasons for which the host stack takes a packet over.
fn slow_path(packet: &Ipv4) -> Vec<Treatment> {
    let mut valid = Vec::new();
    if packet.ttl() <= 1 {
        valid.extend(pass(&[Counter::TtlToStack]));
    }
    if packet.is_fragment() {
        valid.extend(pass(&[Counter::FragmentToStack]));
    }
    if packet.destination() == world::LIMITED {
        valid.extend(pass(&[Counter::LimitedToStack]));
    }
    valid
}

fn accepted_from_pod(packet: &Ipv4, to: Option<(u16, u8)>, is_gso: bool) -> Vec<Treatment> {
    let destination = packet.destination();
    let is_local = world::is_pod(destination);
    let path = match to {
        _ if is_local => None,
        Some((index, _)) if index != 0 => Some(peer(index)),
        // An address of the node's own range: the host answers.
        Some(_) => return [slow_path(packet), pass(&[Counter::PodToStack])].concat(),
        None => return pass(&[Counter::PodToStack]),
    };
    let mut valid = slow_path(packet);
    if path.is_some_and(|peer| peer.path.is_none()) {
        valid.push(unreachable());
        return valid;
    }
    let mtu = usize::from(world::MTU);
    let fits = packet.total_len() <= mtu;
    // Whether bytes after the packet count is open.
    let may_fit = fits || is_gso;
    let may_not = packet.all().len() > mtu || is_gso;
    if path.is_some() && may_not {
        valid.extend(pass(&[Counter::OversizeToStack]));
    }
    if valid.is_empty() || path.is_some() && may_fit && may_not {
        valid.push(match path {
            Some(peer) => to_peer(packet, peer, Counter::PodToTunnel, 1),
            None => Treatment::Send(Sent {
                counters: vec![Counter::PodToPod],
                macs: (Some(POD_MAC), Some(world::HOST_MAC)),
                outer: None,
                packet: with_ttl(packet.all(), packet.ttl() - 1),
            }),
        });
    }
    valid
}

fn from_host(bytes: &[u8]) -> Vec<Treatment> {
    let Some(packet) = Ipv4::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::NoRoute]);
    };
    let to = owner(packet.destination()).filter(|(index, _)| *index != 0);
    let Some((index, _)) = to else {
        return match packet.is_valid() {
            true => drops([DropReason::NoRoute]),
            false => unusable(),
        };
    };
    if !packet.is_valid() {
        return anything();
    }
    let peer = peer(index);
    if peer.path.is_none() {
        return vec![unreachable()];
    }
    // The host has decremented the TTL and compared the length with the route's MTU.
    let mut valid = vec![to_peer(&packet, peer, Counter::HostToTunnel, 0)];
    if packet.all().len() > usize::from(world::MTU) {
        valid.extend(drops([
            DropReason::LengthOverflow,
            DropReason::RewriteFailed,
        ]));
    }
    if TUNNELS.contains(&packet.protocol()) {
        valid.extend(drops([DropReason::NestedTunnel]));
    }
    valid
}

/// Encapsulation towards a peer with a path.
fn to_peer(packet: &Ipv4, peer: &world::Peer, counter: Counter, hops: u8) -> Treatment {
    let (destination, encapsulation) = peer.path.expect("a path");
    let mut counters = vec![counter];
    if !peer.mac_known {
        counters.push(Counter::NeighbourFallback);
    }
    Treatment::Send(Sent {
        counters,
        macs: match peer.mac_known {
            true => (Some(world::NEXT_HOP_MAC), Some(world::UPLINK_MAC)),
            false => (None, None),
        },
        outer: (encapsulation != Encapsulation::Direct).then_some(Outer {
            destination,
            encapsulation,
            tos: packet.tos(),
        }),
        packet: with_ttl(packet.all(), packet.ttl().wrapping_sub(hops)),
    })
}

/// The peer of the destination has no path.
fn unreachable() -> Treatment {
    Treatment::Drop(DropReason::PeerUnreachable)
}

/// A malformed packet whose addresses are right.
fn anything() -> Vec<Treatment> {
    Vec::new()
}

fn arp(bytes: &[u8]) -> Vec<Treatment> {
    let Some(arp) = Arp::read(bytes) else {
        return drops([DropReason::Truncated, DropReason::PodArp]);
    };
    let refused = drops([DropReason::PodArp]);
    // RFC 1812, 3.3.2: no host's address is zero or a group's.
    if !arp.is_ipv4_over_ethernet() || !arp.sender_is_a_station() {
        return refused;
    }
    let (sender, target) = (arp.sender(), arp.target());
    let learned = (sender == POD && arp.sender_mac() != POD_MAC).then_some(Counter::PodMacLearned);
    let counted = |counter| {
        [Some(counter), learned]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    let is_about_itself = sender == target || (sender == Addr::ZERO && target != POD_GATEWAY);
    match arp.operation() {
        1 if is_about_itself => vec![Treatment::Ignore(counted(Counter::ArpIgnored))],
        2 if sender == target => vec![Treatment::Ignore(counted(Counter::ArpIgnored))],
        1 if target == POD_GATEWAY => {
            let mac = if sender == POD {
                world::HOST_MAC
            } else {
                POD_GATEWAY_MAC
            };
            vec![Treatment::Send(Sent {
                counters: counted(Counter::ArpAnswered),
                macs: (Some(arp.sender_mac()), Some(mac)),
                outer: None,
                packet: arp.answer(mac),
            })]
        }
        2 if sender == POD => vec![Treatment::Pass(learned.into_iter().collect())],
        _ if learned.is_some() => {
            vec![Treatment::Refused(
                vec![Counter::PodMacLearned],
                DropReason::PodArp,
            )]
        }
        _ => refused,
    }
}
