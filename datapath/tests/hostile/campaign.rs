//! Runs cases through the programs by `BPF_PROG_TEST_RUN`, and compares each verdict with the model.

use crate::{
    generate::Case,
    ipv4::{Ipv4, sum},
    model::{Circumstances, Outer, Sent, Treatment, judge},
    object::loaded,
    world::{self, Interfaces, OWN},
};
use anyhow::{Context, Result, bail, ensure};
use aya::{
    maps::{Array, MapData},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use ipip_abi::{Config, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, Program, maps};
use ipip_datapath::{Maps, open_map};
use ipip_testkit::scratch::ScratchPins;
use std::collections::BTreeMap;

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const PASS: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;
/// Interface index of `lo`, on which `BPF_PROG_TEST_RUN` runs the programs.
const LO: u32 = 1;
/// After so many cases all counters are read, not only those that the model names.
const BATCH: usize = 512;
/// Bytes of `struct __sk_buff`, and the place of `gso_size` in it.
const CONTEXT: usize = 192;
const GSO_SIZE: usize = 176;

/// A counter or a drop reason.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Code {
    Counter(Counter),
    Drop(DropReason),
}

impl Code {
    pub fn all() -> impl Iterator<Item = Self> {
        let counters = Counter::ALL.iter().copied().map(Self::Counter);
        counters.chain(DropReason::ALL.iter().copied().map(Self::Drop))
    }
}

/// Packets by code.
pub type Counts = BTreeMap<Code, u64>;

/// Reads one count.
pub fn count(maps: &Maps, code: Code) -> Result<u64> {
    let tally = match code {
        Code::Counter(counter) => maps.tally_counter(counter)?,
        Code::Drop(reason) => maps.tally_drop(reason)?,
    };
    Ok(tally.packets)
}

/// The codes among `read` that moved since `counts` were read, which are updated.
pub fn moved(
    maps: &Maps,
    counts: &mut Counts,
    read: impl IntoIterator<Item = Code>,
) -> Result<Vec<(Code, u64)>> {
    let mut moved = Vec::new();
    for code in read {
        let now = count(maps, code)?;
        let before = counts.insert(code, now).unwrap_or(0);
        if now != before {
            moved.push((code, now - before));
        }
    }
    Ok(moved)
}

/// The node and its programs.
pub struct Campaign {
    pub maps: Maps,
    pub flow_pairs: Array<MapData, u32>,
    _pins: ScratchPins,
    programs: BTreeMap<u8, SchedClassifier>,
    /// The counts that are explained so far.
    counts: Counts,
    foreign_ipip: bool,
}

/// What a program did.
struct Done {
    verdict: i32,
    frame: Vec<u8>,
    moved: Vec<(Code, u64)>,
}

impl Campaign {
    pub fn new() -> Result<Self> {
        let pins = loaded()?;
        let mut maps = Maps::open(&pins)?;
        let interfaces = Interfaces {
            pod: LO,
            uplink: LO,
            ipip0: LO,
        };
        world::write(&mut maps, interfaces)?;
        let mut programs = BTreeMap::new();
        for program in Program::ALL {
            let pinned = SchedClassifier::from_pin(pins.program(program))?;
            programs.insert(program as u8, pinned);
        }
        let counts = Code::all().map(|code| (code, 0)).collect();
        Ok(Self {
            maps,
            flow_pairs: open_map(&pins, &maps::FLOW_PAIRS)?,
            _pins: pins,
            programs,
            counts,
            foreign_ipip: false,
        })
    }

    /// Runs the cases. Returns each case whose verdict is none of the model's, with the difference.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<(Case, String)>> {
        let mut failed = Vec::new();
        for batch in cases.chunks(BATCH) {
            let before = failed.len();
            for case in batch {
                let judged = judge_case(case);
                let mut named = named(&judged);
                // What a pod's ARP changes is undone, so that each case meets the same node.
                let learned = Code::Counter(Counter::PodMacLearned);
                if case.program == Program::FromPod && !named.contains(&learned) {
                    named.push(learned);
                }
                if let Err(error) = self.check(case, &judged, &named) {
                    failed.push((case.clone(), format!("{error:#}")));
                }
            }
            // If a counter moved that the model does not name, find the packet.
            let is_explained = moved(&self.maps, &mut self.counts, Code::all())?.is_empty();
            if failed.len() == before && is_explained {
                continue;
            }
            failed.truncate(before);
            for case in batch {
                let every: Vec<Code> = Code::all().collect();
                if let Err(error) = self.check(case, &judge_case(case), &every) {
                    failed.push((case.clone(), format!("{error:#}")));
                }
            }
        }
        Ok(failed)
    }

    /// Runs one case; `read` are the codes to look at. Returns the treatment that the programs chose, unless the model
    /// takes no view.
    pub fn check(
        &mut self,
        case: &Case,
        judged: &[Treatment],
        read: &[Code],
    ) -> Result<Option<Treatment>> {
        self.configure(case.foreign_ipip)?;
        let done = self.run_one(case, read)?;
        let learned = Code::Counter(Counter::PodMacLearned);
        if done.moved.iter().any(|(code, _)| *code == learned) {
            world::restore_pod(&mut self.maps)?;
        }
        ensure!(
            [PASS, DROP, REDIRECT].contains(&done.verdict),
            "the verdict {} is none of ours",
            done.verdict
        );
        // The model takes no view.
        if judged.is_empty() {
            return Ok(None);
        }
        let mut why = Vec::new();
        for treatment in judged {
            match is(&done, treatment, case) {
                Ok(()) => return Ok(Some(treatment.clone())),
                Err(error) => why.push(format!("  not {}: {error:#}", brief(treatment))),
            }
        }
        bail!(
            "verdict {}, moved {:?}\n{}",
            done.verdict,
            done.moved,
            why.join("\n")
        )
    }

    fn configure(&mut self, foreign_ipip: bool) -> Result<()> {
        if self.foreign_ipip != foreign_ipip {
            let config = self.maps.config.get(&0, 0)?;
            let flags = if foreign_ipip {
                Config::FOREIGN_IPIP_PASS
            } else {
                0
            };
            self.maps.config.set(0, Config { flags, ..config }, 0)?;
            self.foreign_ipip = foreign_ipip;
        }
        Ok(())
    }

    fn run_one(&mut self, case: &Case, read: &[Code]) -> Result<Done> {
        let mut frame = vec![0; case.frame.len() + 64];
        let mut context = [0; CONTEXT];
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&u32::from(case.gso_size).to_ne_bytes());
        let result = self.programs[&(case.program as u8)]
            .test_run(TestRunOptions {
                data_in: Some(&case.frame),
                data_out: Some(&mut frame),
                ctx_in: (case.gso_size != 0).then_some(&context[..]),
                ..TestRunOptions::new()
            })
            .context("the kernel does not run the case")?;
        frame.truncate(result.data_size_out as usize);
        Ok(Done {
            verdict: result.return_value as i32,
            frame,
            moved: moved(&self.maps, &mut self.counts, read.iter().copied())?,
        })
    }
}

/// The model's view of a case.
pub fn judge_case(case: &Case) -> Vec<Treatment> {
    let at = Circumstances {
        foreign_ipip: case.foreign_ipip,
        is_gso: case.gso_size != 0,
        ..Circumstances::default()
    };
    let mut judged = judge(case.program, &case.frame, at);
    // The kernel rewrites no GSO packet whose type is unknown, and `BPF_PROG_TEST_RUN` cannot state one. Whether such a
    // packet fits depends on its segments.
    if case.gso_size == 0 {
        return judged;
    }
    // The decision counts before the kernel refuses it.
    let decision = |it: &Treatment| match it {
        Treatment::Send(sent) => Some(vec![sent.counters[0]]),
        Treatment::Pass(counters) if counters[..] == [Counter::OversizeToStack] => {
            Some(vec![Counter::PodToTunnel])
        }
        _ => None,
    };
    let decisions: Vec<Vec<Counter>> = judged.iter().filter_map(decision).collect();
    let segmented = vec![Counter::LargeSegmented];
    match case.program {
        _ if decisions.is_empty() => {}
        Program::FromUplink => {}
        // It should have been segmented before (0041).
        Program::FromFarEnd => {
            judged.push(Treatment::Refused(segmented, DropReason::RewriteFailed));
        }
        _ => judged.push(Treatment::Pass(segmented)),
    }
    for decision in decisions {
        judged.push(Treatment::Refused(decision, DropReason::RewriteFailed));
    }
    judged
}

/// The codes that the treatments move.
fn named(judged: &[Treatment]) -> Vec<Code> {
    let mut codes: Vec<Code> = judged.iter().flat_map(|it| it.codes()).collect();
    codes.sort_unstable();
    codes.dedup();
    if judged.is_empty() {
        Code::all().collect()
    } else {
        codes
    }
}

impl Treatment {
    /// The codes that move, each by one.
    pub fn codes(&self) -> Vec<Code> {
        match self {
            // The settings allow no event.
            Self::Drop(reason) => {
                vec![Code::Drop(*reason), Code::Counter(Counter::EventSuppressed)]
            }
            Self::Refused(counters, reason) => {
                let decision = counters.iter().copied().map(Code::Counter);
                decision.chain(Self::Drop(*reason).codes()).collect()
            }
            Self::Pass(counters) | Self::Ignore(counters) | Self::Send(Sent { counters, .. }) => {
                counters.iter().copied().map(Code::Counter).collect()
            }
        }
    }

    /// Whether exactly its codes moved, each by one.
    pub fn explains(&self, moved: &[(Code, u64)]) -> bool {
        let mut codes = self.codes();
        codes.sort_unstable();
        let mut found: Vec<Code> = moved.iter().map(|(code, _)| *code).collect();
        found.sort_unstable();
        found == codes && moved.iter().all(|(_, by)| *by == 1)
    }
}

fn brief(treatment: &Treatment) -> String {
    match treatment {
        Treatment::Send(sent) => format!("Send({:?})", sent.counters),
        other => format!("{other:?}"),
    }
}

/// Whether a program did what the treatment says.
fn is(done: &Done, treatment: &Treatment, case: &Case) -> Result<()> {
    let verdict = match treatment {
        Treatment::Pass(_) => PASS,
        Treatment::Drop(_) | Treatment::Ignore(_) | Treatment::Refused(..) => DROP,
        Treatment::Send(_) => REDIRECT,
    };
    ensure!(done.verdict == verdict, "the verdict differs");
    ensure!(treatment.explains(&done.moved), "other counters moved");
    match treatment {
        Treatment::Pass(_) => ensure!(done.frame == case.frame, "the packet was changed"),
        Treatment::Send(sent) => is_sent(&done.frame, sent)?,
        Treatment::Drop(_) | Treatment::Ignore(_) | Treatment::Refused(..) => {}
    }
    Ok(())
}

/// Whether `frame` is what the model expects on the next interface.
pub fn is_sent(frame: &[u8], sent: &Sent) -> Result<()> {
    let [to, from] = [0, 6].map(|at| Mac(frame[at..at + 6].try_into().expect("6 bytes")));
    ensure!(
        sent.macs.0.is_none_or(|mac| mac == to),
        "destination MAC {to}"
    );
    ensure!(
        sent.macs.1.is_none_or(|mac| mac == from),
        "source MAC {from}"
    );
    let mut packet = &frame[14..];
    if let Some(outer) = sent.outer {
        packet = without_outer(packet, outer, &sent.packet)?;
    }
    ensure!(
        with_one_zero(packet) == with_one_zero(&sent.packet),
        "the packet is\n  {packet:02x?}\nnot\n  {:02x?}",
        sent.packet
    );
    Ok(())
}

/// The packet with the checksum 0xffff written as 0, which means the same (RFC 1624).
fn with_one_zero(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(checksum) = packet.get_mut(10..12).filter(|it| **it == [0xff; 2]) {
        checksum.fill(0);
    }
    packet
}

/// Compares an outer header (RFC 2003, or foo-over-UDP); returns what is inside.
fn without_outer<'a>(packet: &'a [u8], expected: Outer, inner: &[u8]) -> Result<&'a [u8]> {
    let is_udp = expected.encapsulation == Encapsulation::Udp;
    let len = if is_udp { 28 } else { 20 };
    let outer = Ipv4::read(packet).context("no outer header")?;
    ensure!(packet.len() == len + inner.len(), "{} bytes", packet.len());
    // Bytes after the packet are not part of it.
    let inner_len = Ipv4::read(inner).context("no inner header")?.total_len();
    ensure!(
        packet[0] == 0x45 && outer.total_len() == len + inner_len,
        "its length"
    );
    ensure!(outer.tos() == expected.tos, "DSCP and ECN");
    ensure!(packet[6..8] == [0x40, 0] && outer.ttl() == 64, "DF and TTL");
    ensure!(
        outer.protocol() == if is_udp { 17 } else { 4 },
        "its protocol"
    );
    ensure!(outer.source() == OWN, "its source");
    ensure!(
        outer.destination() == expected.destination,
        "its destination"
    );
    ensure!(sum(&packet[..20]) == 0xffff, "its checksum");
    if is_udp {
        let field = |at| u16::from_be_bytes([packet[at], packet[at + 1]]);
        ensure!(field(20) >= 0xc000, "source port {}", field(20));
        ensure!(field(22) == DEFAULT_UDP_PORT, "destination port");
        // That of a BIG TCP packet is 0, as in the IPv4 header (0008).
        let datagram_len = u16::try_from(inner_len + 8).ok();
        ensure!(
            field(24) == datagram_len.filter(|_| packet.len() <= 0xffff).unwrap_or(0),
            "the datagram's length {}",
            field(24)
        );
        ensure!(field(26) == 0, "the datagram's checksum");
    }
    Ok(&packet[len..])
}
