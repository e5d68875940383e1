//! Probes of paths (`ipip_abi::probe`): sends this node's over the candidate that they name, answers those of peers, and
//! takes their answers.
//!
//! An answer is a new packet with headers of its own, because a firewall on the way may pass the reply of a flow that it
//! would not pass as new traffic. Probes are rare: no other packet pays for them, and their headers are read by helpers.

use crate::{
    ipv4::{Ipv4, fold},
    maps,
    packet::{Packet, write_ok},
    report::count_rare,
    tunnel::{self, Udp},
    verdict::DROP,
};
use aya_ebpf::{
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_ns,
};
use core::{hint::cold_path, mem::offset_of};
use ipip_abi::{
    Addr, Candidate, Config, Counter, DropReason, Encapsulation, NodeAddr, Peer, Route,
    probe::{ProbeMessage, ProbeReceipt, ProbeSecret, ProbeState},
    wire::{
        ETH_LEN, IPV4_LEN, OUTER_FRAGMENT, OUTER_IP_UDP_LEN, OUTER_TTL, OUTER_VERSION_IHL,
        PROTO_IPIP, PROTO_UDP, UDP_LEN,
    },
};

/// What [`receive`] returns for other packets.
const NOT_A_PROBE: i32 = 0;
/// What it returns for a probe that is dropped: this number and the reason.
const DROPPED: i32 = 0x100;

/// The candidate number in a probe that the host sends.
const CANDIDATE: usize = ETH_LEN + IPV4_LEN + UDP_LEN + offset_of!(ProbeMessage, candidate);

/// A probe or an answer, without the bytes that make a probe longer.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Probe {
    ip: Ipv4,
    udp: Udp,
    message: ProbeMessage,
}

/// Both addresses of an IPv4 header, at the offset [`ENDS`].
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Ends {
    source: Addr,
    destination: Addr,
}
const ENDS: usize = offset_of!(Ipv4, source);

/// Whether the host sends a probe. Only the agent and `ipipctl` use this source.
#[inline(always)]
pub fn is_own(ip: &Ipv4) -> bool {
    let is_whole = ip.protocol == PROTO_UDP && !ip.is_fragment();
    is_whole
        && maps::config().is_some_and(|config| is_probe_address(config.probe_address, ip.source))
}

/// The path that a probe of this node names.
#[inline(always)]
pub fn candidate(packet: &Packet, peer: u16) -> Result<&'static Peer, DropReason> {
    packet.pull(CANDIDATE + 1);
    let candidate = packet.read(CANDIDATE).ok_or(DropReason::Truncated)?;
    maps::candidate(peer, candidate).ok_or(DropReason::PeerUnreachable)
}

/// The verdict on a packet that arrived behind `head` bytes of outer headers, if it is for this node's probe address;
/// otherwise it is dropped for `reason`.
#[inline(always)]
pub fn unless_probe(packet: &Packet, head: usize, reason: DropReason) -> Result<i32, DropReason> {
    cold_path();
    match receive(packet.skb, head as u32) {
        NOT_A_PROBE => Err(reason),
        dropped @ DROPPED.. => {
            Err(DropReason::try_from((dropped - DROPPED) as u8).unwrap_or(reason))
        }
        verdict => Ok(verdict),
    }
}

/// The verdict on a packet for this node's probe address, or [`NOT_A_PROBE`]. Not inlined, because it is rare.
#[inline(never)]
fn receive(skb: *mut __sk_buff, head: u32) -> i32 {
    let packet = &Packet { skb };
    let head = head as usize;
    let Some(config) = maps::config() else {
        return NOT_A_PROBE;
    };
    // SAFETY: the struct is plain integers and bytes, for which zero is valid.
    let mut probe: Probe = unsafe { core::mem::zeroed() };
    let is_read = packet.load(ETH_LEN + head, &mut probe);
    if !is_read || !is_probe_address(config.probe_address, probe.ip.destination) {
        return NOT_A_PROBE;
    }
    match decide(packet, head, &mut probe, config) {
        Ok(verdict) => verdict,
        // The caller reports it: the stack is too small for that here.
        Err(reason) => DROPPED + reason as i32,
    }
}

/// Whether `address` is the probe address, if there is one.
#[inline(always)]
fn is_probe_address(probe_address: Addr, address: Addr) -> bool {
    probe_address == address && address != Addr::ZERO
}

#[inline(always)]
fn decide(
    packet: &Packet,
    head: usize,
    probe: &mut Probe,
    config: &Config,
) -> Result<i32, DropReason> {
    let Probe { ip, udp, message } = probe;
    let peer = match maps::route(ip.source) {
        Some(route) if route.kind == Route::PODS && route.peer != 0 => route.peer,
        _ => return Err(DropReason::ProbeNotAuthentic),
    };
    let secret = maps::probe_secret(peer).ok_or(DropReason::ProbeNotAuthentic)?;
    let candidate = Candidate::try_from(message.candidate);
    let candidate = candidate.map_err(|_| DropReason::ProbeNotAuthentic)?;
    let is_authentic = ip.source == secret.address
        && head == usize::from(candidate.encapsulation().overhead())
        && ip.version_ihl == OUTER_VERSION_IHL
        && ip.protocol == PROTO_UDP
        && !ip.is_fragment()
        && udp.destination_port == config.udp_port
        && message.magic == ProbeMessage::MAGIC
        && message.receiver == secret.own
        && message.sender == secret.peer
        && u64::from_ne_bytes(message.code) == code(message, secret);
    if !is_authentic {
        return Err(DropReason::ProbeNotAuthentic);
    }
    if candidate.is_private() {
        check_outer(packet, message)?;
    }
    let state = maps::probe_state(peer, message.candidate).ok_or(DropReason::ProbeNotAuthentic)?;
    // SAFETY: a pointer to a map's value is valid until the program ends, and the words are aligned. Two CPUs that take
    // probes of one candidate at once may answer a replayed one, which proves nothing new.
    let state = unsafe { &mut *state };
    match message.kind {
        ProbeMessage::PROBE => answer(packet, head, peer, probe, config, state),
        ProbeMessage::ANSWER => take_answer(packet, peer, message, state),
        _ => Err(DropReason::ProbeNotAuthentic),
    }
}

/// The authentication code that belongs to the message, as its bytes are in memory. Not inlined, because it is long.
#[inline(never)]
fn code(message: &ProbeMessage, secret: &ProbeSecret) -> u64 {
    u64::from_ne_bytes(message.expected_code(secret.key))
}

/// Checks that a private probe, or its answer, has the outer addresses that the prober meant.
#[inline(always)]
fn check_outer(packet: &Packet, message: &ProbeMessage) -> Result<(), DropReason> {
    let mut outer = Ends {
        source: Addr::ZERO,
        destination: Addr::ZERO,
    };
    let is_read = packet.load(ETH_LEN + ENDS, &mut outer);
    let (from, to) = match message.kind {
        ProbeMessage::PROBE => (message.source, message.destination),
        _ => (message.destination, message.source),
    };
    match is_read && outer.source == from && outer.destination == to {
        true => Ok(()),
        false => Err(DropReason::ProbeNotAuthentic),
    }
}

/// Passes an answer to the agent, and keeps it for `ipipctl`.
#[inline(always)]
fn take_answer(
    packet: &Packet,
    peer: u16,
    message: &ProbeMessage,
    state: &mut ProbeState,
) -> Result<i32, DropReason> {
    let sent_at = u64::from_be_bytes(message.sent_at);
    if sent_at <= state.answered {
        return Err(DropReason::ProbeReplayed);
    }
    // SAFETY: the helper has no preconditions.
    state.received_at = unsafe { bpf_ktime_get_ns() };
    state.len = u16::from_be_bytes(message.len);
    state.flags = message.flags;
    state.answered = sent_at;
    // A full ring loses the receipt, never the state. The receipt is made in the ring, because the stack is small.
    if let Some(mut receipt) = maps::ANSWERS.reserve::<ProbeReceipt>(0) {
        receipt.write(ProbeReceipt {
            sent_at,
            received_at: state.received_at,
            peer,
            len: state.len,
            seen: message.seen,
            candidate: message.candidate,
            flags: state.flags,
            _pad: [0; 6],
        });
        // The agent reads them at its own times: hundreds a second need not wake it.
        receipt.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
    count_rare(packet.skb, Counter::AnswerReceived);
    Ok(DROP)
}

/// Turns an authentic probe into its answer, and sends it.
#[inline(always)]
fn answer(
    packet: &Packet,
    head: usize,
    peer: u16,
    probe: &mut Probe,
    config: &Config,
    state: &mut ProbeState,
) -> Result<i32, DropReason> {
    let mut outer = Ends {
        source: probe.ip.source,
        destination: probe.ip.destination,
    };
    if head != 0 && !packet.load(ETH_LEN + ENDS, &mut outer) {
        return Err(DropReason::Truncated);
    }
    let len = probe.ip.total_len();
    let message = &mut probe.message;
    let is_whole =
        len == usize::from(u16::from_be_bytes(message.len)) && packet.len() >= ETH_LEN + head + len;
    if !is_whole {
        return Err(DropReason::ProbeNotAuthentic);
    }
    pay(u64::from_be_bytes(message.sent_at), state)?;
    state.peer_source = outer.source;
    // It tells the peer what NAT has made of its address.
    message.seen = outer.source;
    message.flags = match accepts(head, outer.source, peer) {
        true => ProbeMessage::ACCEPTED,
        false => 0,
    };

    let secret = maps::probe_secret(peer).ok_or(DropReason::ProbeNotAuthentic)?;
    message.kind = ProbeMessage::ANSWER;
    (message.sender, message.receiver) = (secret.own, secret.peer);
    message.code = code(message, secret).to_ne_bytes();
    let inner = Ends {
        source: secret.address,
        destination: config.probe_address,
    };
    probe.udp = udp(config.udp_port, config, size_of::<Probe>() - IPV4_LEN);
    probe.ip = answer_header(inner, PROTO_UDP, size_of::<Probe>());
    // The answer is written at the end of the frame, and then the bytes before it are removed.
    let at = || packet.len() - (head + size_of::<Probe>());
    write_ok(packet.store(at() + head, probe))?;
    // The outer headers are read and made in the same place, because the stack is small.
    if head == OUTER_IP_UDP_LEN {
        let len = UDP_LEN + size_of::<Probe>();
        probe.udp = udp(tunnel::source_port(packet.hash()), config, len);
        write_ok(packet.store(at() + IPV4_LEN, &probe.udp))?;
    }
    if head != 0 {
        let protocol = match head {
            OUTER_IP_UDP_LEN => PROTO_UDP,
            _ => PROTO_IPIP,
        };
        write_ok(packet.load(ETH_LEN, &mut probe.ip))?;
        let outer = Ends {
            source: probe.ip.source,
            destination: probe.ip.destination,
        };
        probe.ip = answer_header(outer, protocol, head + size_of::<Probe>());
        write_ok(packet.store(at(), &probe.ip))?;
    }
    write_ok(packet.shrink(at() - ETH_LEN))?;
    count_rare(packet.skb, Counter::ProbeAnswered);
    send_back(
        packet,
        head,
        peer,
        probe.ip.destination,
        probe.message.candidate,
    )
}

/// Checks that the probe is newer than the last one that was answered, and within the rate.
#[inline(always)]
fn pay(sent_at: u64, state: &mut ProbeState) -> Result<(), DropReason> {
    if sent_at <= state.asked {
        return Err(DropReason::ProbeReplayed);
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let paid_until = state.paid_until.max(now) + ProbeState::INTERVAL_NS;
    if paid_until - now > ProbeState::INTERVAL_NS * ProbeState::BURST {
        return Err(DropReason::ProbeLimited);
    }
    state.paid_until = paid_until;
    state.asked = sent_at;
    Ok(())
}

/// Whether this node accepts the peer's data on the way that the probe came.
#[inline(always)]
fn accepts(head: usize, source: Addr, peer: u16) -> bool {
    if head == 0 {
        return maps::peer(peer)
            .is_some_and(|path| path.encapsulation == Encapsulation::Direct as u8);
    }
    maps::node_addr(source)
        .is_some_and(|node| node.peer == peer && node.flags & NodeAddr::UNDERLAY != 0)
}

#[inline(always)]
fn udp(source_port: [u8; 2], config: &Config, len: usize) -> Udp {
    Udp {
        source_port,
        destination_port: config.udp_port,
        len: (len as u16).to_be_bytes(),
        checksum: [0; 2],
    }
}

/// A fresh header of an answer of `len` bytes to a packet between these ends.
#[inline(always)]
fn answer_header(received: Ends, protocol: u8, len: usize) -> Ipv4 {
    let mut header = Ipv4 {
        version_ihl: OUTER_VERSION_IHL,
        tos: 0,
        total_len: (len as u16).to_be_bytes(),
        id: [0; 2],
        fragment: OUTER_FRAGMENT.to_be_bytes(),
        ttl: OUTER_TTL,
        protocol,
        checksum: [0; 2],
        source: received.destination,
        destination: received.source,
    };
    header.checksum = (!fold(header.sum())).to_ne_bytes();
    header
}

/// Sends an answer towards the outer source of its probe: on this node's own candidate of that number, if it leads there.
#[inline(always)]
fn send_back(
    packet: &Packet,
    head: usize,
    peer: u16,
    to: Addr,
    candidate: u8,
) -> Result<i32, DropReason> {
    let path = maps::candidate(peer, candidate).ok_or(DropReason::PeerUnreachable)?;
    if head == 0 {
        if path.encapsulation != Encapsulation::Direct as u8 {
            return Err(DropReason::PeerUnreachable);
        }
        return tunnel::to_uplink(packet, path, Some(path.underlay));
    }
    if path.underlay == to {
        return tunnel::to_uplink(packet, path, None);
    }
    Ok(tunnel::by_neighbour(packet, packet.ifindex(), None))
}
