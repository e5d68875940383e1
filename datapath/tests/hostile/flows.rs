//! The model's flows: which came out of the host stack, and what this changes for later packets (decisions 0002, 0003 and
//! 0042). Like the [model](crate::model), it is written without the sources of the programs.

use crate::{
    generate::Case,
    ipv4::{Ipv4, with_ttl},
    model::{Sent, Treatment},
    world::{self, LIMITED, owner, peer},
};
use anyhow::{Result, bail, ensure};
use ipip_abi::{Addr, Counter, DropReason, Program};
use std::collections::BTreeMap;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// An address and a port.
pub type End = (Addr, u16);

/// Packets with the same ends and protocol, in both directions.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Flow {
    pub low: End,
    pub high: End,
    pub protocol: u8,
}

impl Flow {
    fn new(one: End, other: End, protocol: u8) -> Self {
        Self {
            low: one.min(other),
            high: one.max(other),
            protocol,
        }
    }
}

/// Where a flow is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// In `FLOWS`.
    Flows,
    /// In `FLOWS`, and its server has closed it.
    Closed,
    /// In `CONNECTIONS`.
    Connections,
}

/// A flow that came out of the host stack.
#[derive(Clone, Debug)]
struct Entry {
    /// The source of the packet that created it.
    from: End,
    /// Where it may be: the documents leave some cases open.
    places: Vec<Place>,
}

/// A packet as part of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub flow: Flow,
    from: End,
    /// It is an ICMP error about a packet of the flow's other direction.
    is_error: bool,
    segment: Option<Segment>,
    /// The documents say whose flow it is. They say nothing of later fragments, which have no ports, and of errors whose
    /// quote is not the whole header with eight bytes behind it (RFC 792), or has options.
    pub is_clear: bool,
}

/// What a TCP header says about its connection.
#[derive(Clone, Copy, Debug)]
struct Segment {
    opens: bool,
    closes: bool,
    has_data: bool,
}

impl Part {
    /// Reads a valid packet.
    fn read(packet: &Ipv4) -> Option<Self> {
        let message = packet.payload();
        let is_error = packet.protocol() == ICMP && matches!(message.first()?, 3 | 4 | 5 | 11 | 12);
        let (from, to) = ends(packet, message)?;
        let is_segment = packet.protocol() == TCP && !packet.is_later_fragment();
        let own = Self {
            flow: Flow::new(from, to, packet.protocol()),
            from,
            is_error,
            segment: is_segment.then(|| Segment::read(message)).flatten(),
            is_clear: !is_error && !packet.is_later_fragment(),
        };
        let is_whole = |it: &Ipv4| it.version() == 4 && it.header_len() == 20 && it.len() >= 28;
        let quoted = message.get(8..).and_then(Ipv4::read).filter(is_whole);
        let Some(quoted) = quoted.filter(|it| is_error && !it.is_later_fragment()) else {
            return Some(own);
        };
        let (from, to) = ends(&quoted, &quoted.all()[20..])?;
        Some(Self {
            flow: Flow::new(from, to, quoted.protocol()),
            // It travels against the packet that it quotes.
            from: to,
            is_clear: !packet.is_fragment(),
            ..own
        })
    }
}

fn ends(packet: &Ipv4, payload: &[u8]) -> Option<(End, End)> {
    let (mut ports, mut bytes) = ([0; 2], payload.iter().copied());
    if [TCP, UDP].contains(&packet.protocol()) && !packet.is_later_fragment() {
        for port in &mut ports {
            *port = u16::from_be_bytes([bytes.next()?, bytes.next()?]);
        }
    }
    let from = (packet.source(), ports[0]);
    Some((from, (packet.destination(), ports[1])))
}

impl Segment {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (offset, flags) = (usize::from(*bytes.get(12)? >> 4) * 4, *bytes.get(13)?);
        Some(Self {
            opens: flags & 2 != 0,
            closes: flags & 5 != 0,
            has_data: bytes.len() > offset,
        })
    }

    /// Where a flow at `place` may be after the server has sent this segment (0042).
    fn moves(self, place: Place) -> Vec<Place> {
        match (self.opens, self.closes, place) {
            // No kernel sends both.
            (true, true, _) => vec![place, Place::Closed],
            (_, true, _) => vec![Place::Closed],
            // A new connection with the old ports: whether it already replaces the closed one is open.
            (true, _, Place::Closed) => vec![Place::Closed, Place::Flows],
            (true, ..) => vec![place],
            (_, _, Place::Closed) if !self.has_data => vec![Place::Closed],
            _ => vec![Place::Connections],
        }
    }
}

/// The flows that are kept.
#[derive(Debug, Default)]
pub struct Flows(BTreeMap<Flow, Entry>);

impl Flows {
    /// The valid treatments of a packet whose valid treatments without any flow are `judged`.
    pub fn judge(&self, case: &Case, judged: &[Treatment]) -> Vec<Treatment> {
        let each = judged.iter();
        each.flat_map(|treatment| {
            let packet = travelling(case, treatment);
            let packet = Ipv4::read(&packet).filter(Ipv4::is_valid);
            match packet.and_then(|it| Some((it, Part::read(&it)?))) {
                None => vec![treatment.clone()],
                Some((packet, part)) => match case.program {
                    Program::FromPod | Program::FromUplink => {
                        self.beside_the_stack(case.program, treatment, &packet, part)
                    }
                    _ => self.out_of_the_stack(case.program, treatment, &packet, part),
                },
            }
        })
        .collect()
    }

    /// A packet that takes the fast path, unless its flow came out of the stack.
    fn beside_the_stack(
        &self,
        program: Program,
        treatment: &Treatment,
        packet: &Ipv4,
        part: Part,
    ) -> Vec<Treatment> {
        let (same, forgotten) = (treatment.clone(), with(treatment, Counter::FlowForgotten));
        // No flow excuses a fault.
        if !is_fast(treatment) && !is_slow(treatment) {
            return vec![same];
        }
        let stack = to_stack(program, packet, treatment);
        if !part.is_clear {
            return match self.0.is_empty() {
                true => vec![same],
                false => vec![same, forgotten, stack],
            };
        }
        let Some(entry) = self.0.get(&part.flow) else {
            return vec![same];
        };
        let is_reply = entry.from != part.from;
        match (is_fast(treatment), is_reply) {
            (true, true) => vec![stack],
            // Anybody can quote any packet, so an error says nothing about a new flow.
            (_, false) if part.is_error => vec![same],
            // The flow's tuple is used by a new flow (0002).
            (true, false) => vec![forgotten],
            (false, true) => vec![same, stack],
            // A packet that takes the fast path as far as it goes. Out of the stack it would be recorded again.
            (false, false) if ends_the_fast_path(treatment) => vec![same, forgotten],
            (false, false) => vec![same],
        }
    }

    /// A packet that the host stack sends to a pod or a peer.
    fn out_of_the_stack(
        &self,
        program: Program,
        treatment: &Treatment,
        packet: &Ipv4,
        part: Part,
    ) -> Vec<Treatment> {
        // An entry is never changed (0002), and nothing replies to an error.
        if part.is_clear && (part.is_error || self.0.contains_key(&part.flow)) {
            return vec![treatment.clone()];
        }
        let (same, recorded) = (treatment.clone(), with(treatment, Counter::FlowRecorded));
        match (treatment, is_recorded(program, packet)) {
            (_, Some(false)) => vec![same],
            // Dropped on its way to a known peer: whether it was recorded before is open.
            (Treatment::Refused(..), _) => vec![same, recorded],
            (Treatment::Drop(reason), _) => match reason {
                DropReason::PeerUnreachable
                | DropReason::LengthOverflow
                | DropReason::RewriteFailed => vec![same, recorded],
                _ => vec![same],
            },
            (_, Some(true)) if part.is_clear => vec![recorded],
            _ => vec![same, recorded],
        }
    }

    /// The flow that a packet with this treatment belongs to.
    pub fn part(case: &Case, treatment: &Treatment) -> Option<Part> {
        let packet = travelling(case, treatment);
        Part::read(&Ipv4::read(&packet).filter(Ipv4::is_valid)?)
    }

    /// Changes what is kept, as the treatment of the packet says.
    pub fn apply(&mut self, part: Part, treatment: &Treatment) {
        let counters = counters(treatment);
        if counters.contains(&Counter::FlowRecorded) {
            let (from, places) = (part.from, vec![Place::Flows]);
            self.0.insert(part.flow, Entry { from, places });
        } else if counters.contains(&Counter::FlowForgotten) {
            self.0.remove(&part.flow);
        } else if let (Some(entry), Some(segment)) = (self.0.get_mut(&part.flow), part.segment)
            && entry.from != part.from
            // A reply that takes the stack for another reason may count as one of the flow or not.
            && !counters.is_empty()
        {
            let before = entry.places.clone();
            let moved = before.iter().flat_map(|place| segment.moves(*place));
            entry.places = moved.collect();
            if !counters.contains(&Counter::FlowToStack) {
                entry.places.extend(before);
            }
        }
    }

    /// Compares a flow with what is kept of it: where, and whether its first packet came from the low end.
    pub fn compare(&mut self, flow: Flow, kept: &[(Place, bool)]) -> Result<()> {
        // A connection's entry in `FLOWS` may stay until other flows displace it.
        let found = kept.iter().find(|(place, _)| *place == Place::Connections);
        match (self.0.get_mut(&flow), found.or(kept.first())) {
            (None, None) => Ok(()),
            (Some(entry), Some(&(place, _))) => {
                let from_low = entry.from == flow.low;
                ensure!(
                    kept.iter().all(|it| it.1 == from_low),
                    "the direction of {flow:?}"
                );
                ensure!(
                    entry.places.contains(&place),
                    "{place:?} keeps {flow:?}, not {:?}",
                    entry.places
                );
                entry.places = vec![place];
                Ok(())
            }
            (entry, _) => bail!("kept of {flow:?}: {kept:?}, the model has {entry:?}"),
        }
    }
}

/// The packet without an outer header.
fn travelling(case: &Case, treatment: &Treatment) -> Vec<u8> {
    match treatment {
        Treatment::Send(sent) => sent.packet.clone(),
        // The treatments that matter are those of packets from a pod and to one.
        _ => case.frame[14..].to_vec(),
    }
}

/// The counters of a treatment.
fn counters(treatment: &Treatment) -> &[Counter] {
    match treatment {
        Treatment::Pass(counters)
        | Treatment::Ignore(counters)
        | Treatment::Refused(counters, _)
        | Treatment::Send(Sent { counters, .. }) => counters,
        Treatment::Drop(_) => &[],
    }
}

/// Whether the counters of a treatment say that it changes the flows, but not which.
pub fn changes_flows(treatment: &Treatment) -> bool {
    let mut counters = counters(treatment).iter();
    counters.any(|it| [Counter::FlowRecorded, Counter::FlowForgotten].contains(it))
}

fn is_fast(treatment: &Treatment) -> bool {
    let fast = [
        Counter::PodToTunnel,
        Counter::PodToPod,
        Counter::TunnelToPod,
    ];
    counters(treatment).iter().any(|it| fast.contains(it))
}

/// Whether another reason leads into the stack, or the stack answers for an unreachable peer.
fn is_slow(treatment: &Treatment) -> bool {
    let slow = [
        Counter::TtlToStack,
        Counter::FragmentToStack,
        Counter::LimitedToStack,
    ];
    ends_the_fast_path(treatment) || counters(treatment).iter().any(|it| slow.contains(it))
}

/// Whether only the path to the peer is no fast path for the packet.
fn ends_the_fast_path(treatment: &Treatment) -> bool {
    let ends = [Counter::OversizeToStack, Counter::LargeSegmented];
    *treatment == Treatment::Drop(DropReason::PeerUnreachable)
        || counters(treatment).iter().any(|it| ends.contains(it))
}

/// The treatment of a reply that had another one without its flow.
fn to_stack(program: Program, packet: &Ipv4, treatment: &Treatment) -> Treatment {
    let counters = vec![Counter::FlowToStack];
    if program == Program::FromPod {
        return Treatment::Pass(counters);
    }
    Treatment::Send(Sent {
        counters,
        macs: (Some(world::IPIP0_MAC), None),
        outer: None,
        // The stack routes the packet, so it gets the packet as it came.
        packet: with_ttl(packet.all(), packet.ttl() + u8::from(is_fast(treatment))),
    })
}

fn with(treatment: &Treatment, counter: Counter) -> Treatment {
    let mut treatment = treatment.clone();
    match &mut treatment {
        Treatment::Pass(counters) | Treatment::Send(Sent { counters, .. }) => {
            counters.push(counter);
        }
        Treatment::Refused(counters, _) => counters.push(counter),
        Treatment::Drop(reason) => treatment = Treatment::Refused(vec![counter], *reason),
        Treatment::Ignore(_) => {}
    }
    treatment
}

/// Whether a packet out of the stack is recorded: only if its reply could take the fast path. `None` if this is open.
fn is_recorded(program: Program, packet: &Ipv4) -> Option<bool> {
    let (source, destination) = (packet.source(), packet.destination());
    let pod = match program {
        Program::ToPod => destination,
        _ => source,
    };
    let answers = match program {
        // `from_host` has recorded it before it was segmented (0041).
        Program::FromFarEnd => return None,
        // The reply goes from the pod to where the packet came from.
        Program::ToPod => match owner(source) {
            _ if source == LIMITED => return None,
            _ if world::is_pod(source) => true,
            Some((index, _)) if index != 0 => match peer(index).path {
                Some(_) => true,
                None => return None,
            },
            _ => false,
        },
        _ => true,
    };
    match pod {
        _ if !answers => Some(false),
        LIMITED => None,
        _ if world::is_pod(pod) => Some(true),
        // No reply reaches an address that is no pod's.
        _ if program == Program::ToPod => None,
        _ => Some(false),
    }
}
