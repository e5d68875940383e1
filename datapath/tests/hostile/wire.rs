//! Sends cases through real interfaces into attached programs: with VLAN tags, non-linear parts, segments that are cut
//! later (also of packets beyond 64 KiB), and frames that end in a header. What arrives on the other interfaces is compared
//! with the model, too.
//!
//! ```text
//! far ── uplink [from_uplink]      ipip0 ── ipip0-far
//! eth0 ── pod [from_pod]
//! ```
//!
//! Large packets in a tunnel come from the programs of [another node](crate::peer_node) at `far`.

use crate::{
    campaign::{Code, Counts, count, is_sent, moved},
    generate::Case,
    ipv4::{Ipv4, fill_checksum},
    model::{Circumstances, Sent, Treatment, judge},
    object::loaded,
    world::{self, Interfaces, MTU, POD, STRANGER},
};
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use ipip_abi::{Addr, Counter, Program};
use ipip_datapath::{AttachMode, Maps, Programs};
use ipip_netlink::{LinkChange, Netlink, Veth, set_sysctl};
use ipip_testkit::{
    frames::{FrameReceiver, FrameSender, Handling},
    scratch::ScratchPins,
    test_ns::TestNs,
};
use std::{
    io,
    time::{Duration, Instant},
};

/// Longest time that a frame takes through a veth on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest frame with a tag, in bytes. The kernel drops a frame that has fewer than two bytes behind its tag before any
/// program runs (`skb_vlan_untag` in net/core/skbuff.c).
const SHORTEST_TAGGED: usize = 20;

/// Bytes of the largest GSO packet: with BIG TCP (Linux 6.3), and without.
const BIG_TCP: u32 = 192 << 10;
const SMALL_TCP: u32 = 65_535;
/// Longest headers of a frame around the data of a TCP segment: Ethernet, a tunnel's, IPv4 and TCP.
const HEADERS: u32 = 14 + 28 + 20 + 20;

/// A case with what only real interfaces can do.
#[derive(Clone, Debug)]
pub struct Frame {
    pub case: Case,
    /// VLAN IDs, outermost first.
    pub vlans: [Option<u16>; 2],
    pub handling: Handling,
}

/// Adds tags, cuts, non-linear parts and segments of at most `largest` bytes together to a case.
pub fn frame(rng: &mut Rng, mut case: Case, largest: usize) -> Frame {
    case.gso_size = 0;
    let mut handling = Handling::default();
    if rng.u8(..20) == 0 {
        let is_tagged = [[0x81, 0], [0x88, 0xa8]].contains(&[case.frame[12], case.frame[13]]);
        let shortest = if is_tagged { SHORTEST_TAGGED } else { 14 };
        case.frame.truncate(rng.usize(shortest..case.frame.len()));
    }
    if rng.u8(..4) == 0 {
        handling.linear = rng.u16(14..=case.frame.len() as u16);
    }
    let vlans = match rng.u8(..30) {
        // A frame that ends in its tag is no program's: the kernel drops it.
        _ if case.frame.len() < 18 => [None, None],
        0 => [Some(0), None],
        1 => [Some(100), None],
        2 => [Some(0), Some(0)],
        3 => [Some(0), Some(100)],
        4 => [Some(100), Some(0)],
        _ => [None, None],
    };
    if case.program == Program::FromPod && vlans[0].is_none() && rng.bool() {
        handling.tcp_segments = segments(rng, &mut case.frame, largest);
    }
    Frame {
        case,
        vlans,
        handling,
    }
}

/// Makes a valid TCP packet longer, to be cut into segments.
pub fn segments(rng: &mut Rng, frame: &mut Vec<u8>, largest: usize) -> Option<(u16, u16)> {
    let packet = Ipv4::read(&frame[14..])?;
    let is_tcp = packet.is_valid() && packet.protocol() == 6 && packet.payload().len() >= 20;
    // Its checksum would change before it is filled in, which the model does not know.
    let is_syn = is_tcp && packet.payload()[13] & 2 != 0;
    if !is_tcp || is_syn || packet.is_fragment() || packet.header_len() != 20 {
        return None;
    }
    frame.truncate(14 + 40);
    frame[14 + 20 + 12] = 5 << 4;
    let data = match rng.u8(..8) {
        // Around the longest packet whose length the header states, without and with an outer header.
        0 | 1 => rng.usize(65_535 - 40 - 40..65_535 + 40).min(largest),
        2 | 3 => rng.usize(3000..=largest),
        4 => largest,
        _ => rng.usize(3000..60_000),
    };
    frame.resize(14 + 40 + data, 7);
    // BIG TCP (0008).
    let len = u16::try_from(frame.len() - 14).unwrap_or(0);
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    fill_checksum(&mut frame[14..], 20);
    let largest = MTU - 40;
    let sizes = [536, 1000, largest - 1, largest, largest + 1, 1460];
    Some((sizes[rng.usize(..sizes.len())], 14 + 20))
}

/// The interfaces with the programs attached.
pub struct Wire {
    maps: Maps,
    _pins: ScratchPins,
    _namespaces: [TestNs; 2],
    pub far: TestNs,
    pub far_index: u32,
    /// Bytes of data of the largest TCP packet that every interface takes whole.
    pub largest: usize,
    uplink: (FrameSender, FrameReceiver),
    pod: (FrameSender, FrameReceiver),
    ipip0: FrameReceiver,
    counts: Counts,
}

/// Where a frame came out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Far,
    Pod,
    Host,
}

impl Wire {
    pub fn new() -> Result<Self> {
        let [near, far, inside] = [(); 3].map(|()| TestNs::new());
        // Otherwise packets that the kernel sends by itself would be counted too.
        for ns in [&near, &far, &inside] {
            ns.run(|| set_sysctl("net.ipv6.conf.default.disable_ipv6", "1"))??;
        }
        let (uplink, far_index) = veth(&near, "uplink", &far, "far")?;
        let (pod, eth0) = veth(&near, "pod", &inside, "eth0")?;
        let (ipip0, _) = veth(&near, "ipip0", &far, "ipip0-far")?;
        let pins = loaded()?;
        let mut maps = Maps::open(&pins)?;
        let interfaces = Interfaces { pod, uplink, ipip0 };
        world::write(&mut maps, interfaces)?;
        near.run(|| {
            let mut programs = Programs::open(&pins, AttachMode::Auto)?;
            programs.attach_uplink("uplink")?;
            programs.attach_pod("pod")
        })??;
        let both = |index| anyhow::Ok((FrameSender::open(index)?, FrameReceiver::open(index)?));
        Ok(Self {
            far_index,
            largest: largest(&near)?,
            uplink: far.run(|| both(far_index))??,
            pod: inside.run(|| both(eth0))??,
            ipip0: near.run(|| FrameReceiver::open(ipip0))??,
            counts: Code::all().map(|code| (code, 0)).collect(),
            maps,
            _pins: pins,
            far,
            _namespaces: [near, inside],
        })
    }

    /// Sends a frame, and compares what happens with the model.
    pub fn check(&mut self, frame: &Frame) -> Result<()> {
        let program = frame.case.program;
        let sender = match program {
            Program::FromPod => &self.pod.0,
            _ => &self.uplink.0,
        };
        match sender.send(&tagged(frame), frame.handling) {
            Ok(()) => {}
            // The sending kernel found the fault.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
            Err(error) => return Err(error).context("cannot send the frame"),
        }
        // Frames of one sender stay in order: when the marker has been counted, the frame has been treated.
        let (marker, counter) = marker(program);
        sender.send(&marker, Handling::default())?;
        let named = self.judge(frame);
        self.compare(&named, &[Code::Counter(counter)])
    }

    /// Compares what happened to a frame with its valid treatments, as soon as the marker behind it has moved its codes.
    pub fn compare(&mut self, named: &[Treatment], marker: &[Code]) -> Result<()> {
        let first = marker[0];
        let before = self.counts[&first];
        let deadline = Instant::now() + TIMEOUT;
        let also = named.iter().any(|it| it.codes().contains(&first));
        while count(&self.maps, first)? == before {
            ensure!(Instant::now() < deadline, "the marker was not counted");
        }
        if also {
            // One of both was counted. Wait for the other one, whose codes may be the same.
            let least = named.iter().map(|it| it.codes().len()).min().unwrap_or(0);
            let deadline = match least {
                // Nothing says that the frame has been treated.
                0 => Instant::now() + Duration::from_millis(20),
                _ => deadline,
            };
            let least = (marker.len() + least.max(1)) as u64;
            while self.total()? < self.counts.values().sum::<u64>() + least
                && Instant::now() < deadline
            {}
        }
        let mut moved = moved(&self.maps, &mut self.counts, Code::all())?;
        for (code, by) in &mut moved {
            *by -= u64::from(marker.contains(code));
        }
        moved.retain(|(_, by)| *by != 0);
        let arrived = self.arrived()?;
        world::restore_pod(&mut self.maps)?;
        if named.is_empty() {
            return Ok(());
        }
        let mut why = Vec::new();
        for treatment in named {
            match is(&moved, &arrived, treatment) {
                Ok(()) => return Ok(()),
                Err(error) => why.push(format!("  not {treatment:.60?}: {error:#}")),
            }
        }
        let places: Vec<_> = arrived.iter().map(|it| (it.0, it.1.len())).collect();
        bail!("moved {moved:?}, arrived at {places:?}\n{}", why.join("\n"))
    }

    /// The sum of all counts.
    fn total(&self) -> Result<u64> {
        Code::all().map(|code| count(&self.maps, code)).sum()
    }

    fn judge(&self, frame: &Frame) -> Vec<Treatment> {
        let at = Circumstances {
            foreign_ipip: false,
            is_gso: false,
            vlans: frame.vlans,
        };
        let Some((size, _)) = frame.handling.tcp_segments else {
            return judge(frame.case.program, &frame.case.frame, at);
        };
        let at = Circumstances { is_gso: true, ..at };
        let mut judged = judge(frame.case.program, &frame.case.frame, at);
        // The headers of the segments have 40 bytes.
        let fits = size + 40 <= MTU;
        judged.retain(|it| match it {
            Treatment::Send(_) => fits,
            Treatment::Pass(counters) if counters[..] == [Counter::OversizeToStack] => !fits,
            _ => true,
        });
        judged
    }

    fn arrived(&self) -> Result<Vec<(Place, Vec<u8>)>> {
        let receivers = [
            (Place::Far, &self.uplink.1),
            (Place::Pod, &self.pod.1),
            (Place::Host, &self.ipip0),
        ];
        let mut arrived = Vec::new();
        for (place, receiver) in receivers {
            while let Some(frame) = receiver.receive()? {
                arrived.push((place, frame));
            }
        }
        Ok(arrived)
    }
}

/// A frame with a verdict that is counted and changes nothing else.
fn marker(program: Program) -> (Vec<u8>, Counter) {
    let (source, protocol, counter) = match program {
        Program::FromPod => (POD, 6, Counter::PodToStack),
        _ => (STRANGER, 4, Counter::NotOurTunnelAddress),
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend(source.0);
    frame.extend(Addr([203, 0, 113, 250]).0);
    frame.extend([0; 20]);
    fill_checksum(&mut frame[14..], 20);
    (frame, counter)
}

/// Whether counters and arrived frames are those of the treatment.
fn is(moved: &[(Code, u64)], arrived: &[(Place, Vec<u8>)], treatment: &Treatment) -> Result<()> {
    ensure!(treatment.explains(moved), "other counters moved");
    let place = match treatment {
        // What the kernel does without the next hop's MAC depends on the interface.
        Treatment::Send(sent) if sent.counters.contains(&Counter::NeighbourFallback) => {
            return Ok(());
        }
        Treatment::Send(sent) => place_of(sent),
        _ => None,
    };
    match (place, arrived, treatment) {
        (None, [], _) => Ok(()),
        (Some(place), [(at, frame)], Treatment::Send(sent)) if place == *at => is_sent(frame, sent),
        _ => bail!("frames: {}", arrived.len()),
    }
}

/// Where a frame arrives that the model expects; `None` for interfaces that do not exist.
fn place_of(sent: &Sent) -> Option<Place> {
    let is_for = |pod: Addr| sent.packet.get(16..20) == Some(&pod.0[..]);
    match sent.counters[0] {
        Counter::ArpAnswered => Some(Place::Pod),
        Counter::TunnelToPod | Counter::PodToPod => is_for(POD).then_some(Place::Pod),
        Counter::PodToTunnel => Some(Place::Far),
        _ => Some(Place::Host),
    }
}

fn tagged(frame: &Frame) -> Vec<u8> {
    let (macs, rest) = frame.case.frame.split_at(12);
    let tags = frame.vlans.iter().flatten();
    let tags: Vec<u8> = tags
        .flat_map(|id| [0x81, 0, 0xa0 | (id >> 8) as u8, *id as u8])
        .collect();
    [macs, &tags, rest].concat()
}

/// Bytes of data of the largest TCP packet that the interfaces take whole. The kernel cuts a frame that has the maximum
/// (`gso_features_check` in net/core/dev.c).
fn largest(near: &TestNs) -> Result<usize> {
    let uplink = Netlink::open_in(near)?.link("uplink")?;
    let reported = uplink.context("the uplink")?.gso_ipv4_max;
    let frame = reported.filter(|it| *it == BIG_TCP).unwrap_or(SMALL_TCP);
    Ok((frame - HEADERS - 1) as usize)
}

/// A veth pair whose ends are up; returns their indices.
pub fn veth(one: &TestNs, name: &str, other: &TestNs, peer_name: &str) -> Result<(u32, u32)> {
    let mut link = Netlink::open_in(one)?;
    link.add_veth(&Veth {
        name,
        peer_name,
        peer_ns: Some(other),
        mtu: Some(9000),
        gso_ipv4_max: Some(BIG_TCP),
        ..Veth::default()
    })?;
    let up = |link: &mut Netlink, name| -> Result<u32> {
        let index = link.link(name)?.context("the veth")?.index;
        let change = LinkChange {
            up: Some(true),
            mtu: Some(9000),
            ..LinkChange::default()
        };
        link.change_link(index, &change)?;
        Ok(index)
    };
    Ok((
        up(&mut link, name)?,
        up(&mut Netlink::open_in(other)?, peer_name)?,
    ))
}

#[test]
fn no_frame_ends_in_its_own_tag() {
    let mut rng = Rng::with_seed(1);
    for ethertype in [[0x81, 0], [0x88, 0xa8]] {
        for _ in 0..10_000 {
            let mut case = Case {
                program: Program::FromPod,
                frame: vec![0; 34],
                gso_size: 0,
                foreign_ipip: false,
            };
            case.frame[12..14].copy_from_slice(&ethertype);
            assert!(frame(&mut rng, case, 60_000).case.frame.len() >= SHORTEST_TAGGED);
        }
    }
}
