//! Probes the paths to all peers, and says which ones are used.

use crate::{
    daemon::paths_file::PathsFile,
    log_limit::LogLimit,
    nodes::public_address::Views,
    paths::{
        candidate::Candidate,
        peers::{Answer, Change, Offer, Paths},
        uses::Uses,
    },
};
use ipip_abi::{Candidate as Number, Config, Counter, probe::ProbeMessage};
use ipip_datapath::{Answers, Maps, Pins, ProbeTarget, Prober, SHORTEST_PROBE, SentReader};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

/// Between two readings of the packets that were sent to each peer: a path that failed while idle is left within three
/// seconds of the first packets.
const TRAFFIC: Duration = Duration::from_millis(500);
/// Shortest time between two runs.
const TICK: Duration = Duration::from_millis(20);
/// Reconciliations with new paths may take one part of so many of the time.
const SHARE: u32 = 3;

/// Probes the paths to all peers.
pub struct PathProber {
    paths: Paths,
    /// The addresses by which the peers know this node.
    own: Option<BTreeSet<Ipv4Addr>>,
    /// The public address of this node, as peers see it.
    views: Views,
    /// None until this node has a probe address.
    prober: Option<(Config, Prober)>,
    answers: Answers,
    file: Option<PathsFile>,
    clock: Clock,
    /// How many ICMP errors there were when they were looked at last, and when that was.
    hints: u64,
    hints_read_at: Instant,
    /// When the traffic is read next.
    traffic_at: Instant,
    /// Before this time, nothing is done.
    earliest: Instant,
    /// Before this time, no new paths are reported.
    report_at: Instant,
    /// Whether the next reconciliation is one with new paths.
    has_reported: bool,
    /// What was reported last.
    uses: Uses,
    log_limit: LogLimit,
}

impl PathProber {
    /// A prober that begins with the paths of an earlier agent of this boot.
    ///
    /// # Errors
    /// The datapath cannot be opened.
    pub fn open(pins: &Pins, state_dir: &Path) -> Result<Self, ipip_datapath::Error> {
        let now = Instant::now();
        let file = PathsFile::new(state_dir)
            .inspect_err(|error| warn!(%error, "the paths in use are not kept"))
            .ok();
        let uses = file.as_ref().map(PathsFile::read).unwrap_or_default();
        Ok(Self {
            paths: Paths::new(uses.clone(), now),
            own: None,
            views: Views::default(),
            prober: None,
            answers: Answers::open(pins)?,
            file,
            clock: Clock::now(),
            hints: 0,
            hints_read_at: now,
            traffic_at: now,
            earliest: now,
            report_at: now,
            has_reported: false,
            uses,
            log_limit: LogLimit::default(),
        })
    }

    /// What probes have shown, as reported last.
    pub fn uses(&self) -> &Uses {
        &self.uses
    }

    /// What peers have shown of this node's public address.
    pub fn views(&mut self) -> &mut Views {
        &mut self.views
    }

    /// The paths with what is known of them.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Learns how long a reconciliation took. Only those with new paths count: others come whenever something changes on the
    /// host.
    pub fn reconciled(&mut self, took: Duration) {
        if std::mem::take(&mut self.has_reported) {
            self.report_at = Instant::now() + took * SHARE;
        }
    }

    /// Replaces the peers and the addresses by which they know this node.
    pub fn set_offers(&mut self, offers: BTreeMap<u16, Offer>, own: BTreeSet<Ipv4Addr>) {
        let now = Instant::now();
        let before = self.own.replace(own);
        if before.is_some() && before != self.own {
            self.paths.forget(now);
        }
        self.paths.set_offers(offers, now);
    }

    /// When [`Self::run`] has something to do; none without peers.
    pub fn wake(&self) -> Option<Instant> {
        if self.paths.is_empty() {
            return None;
        }
        let report = self.paths.has_changed().then_some(self.report_at);
        let others = [self.paths.wake(), report].into_iter().flatten();
        let wake = others.fold(self.traffic_at, Instant::min);
        Some(wake.max(self.earliest))
    }

    /// Takes the answers that have arrived, and sends the probes that are due: `target` is what they need of the maps, as they were
    /// written. Returns whether [`Self::uses`] has changed.
    pub fn run(&mut self, maps: &Maps, target: impl Fn(u16, Number) -> ProbeTarget) -> bool {
        let now = Instant::now();
        self.earliest = now + TICK;
        self.take_answers();
        if self.traffic_at <= now {
            self.traffic_at = now + TRAFFIC;
            self.read_traffic(maps, now);
            self.read_hints(maps, now);
        }
        self.open_socket(maps);
        let (prober, clock) = (self.prober.as_ref().map(|it| &it.1), &self.clock);
        let log_limit = &mut self.log_limit;
        let changes = self.paths.run(now, |peer, number, size| {
            let size = size.unwrap_or(SHORTEST_PROBE as u16);
            let sent = prober.map(|it| it.send(peer, number, &target(peer, number), size));
            match sent {
                Some(Ok(sent)) => return clock.instant(sent.at),
                Some(Err(error)) if log_limit.allows("probes", now) => {
                    warn!(%error, peer, path = number.name(), size, "cannot send a probe");
                }
                _ => {}
            }
            // It counts as lost.
            Instant::now()
        });
        for change in changes {
            self.log(&change, now);
        }
        self.report(now)
    }

    fn take_answers(&mut self) {
        while let Some(receipt) = self.answers.next() {
            let Ok(number) = Number::try_from(receipt.candidate) else {
                continue;
            };
            let sent = self.clock.instant(Duration::from_nanos(receipt.sent_at));
            let received = self
                .clock
                .instant(Duration::from_nanos(receipt.received_at));
            let is_accepted = receipt.flags & ProbeMessage::ACCEPTED != 0;
            let answer = Answer {
                received,
                is_accepted,
                len: receipt.len,
            };
            let seen = receipt.seen.into();
            // A private path shows an address of this node that is private, too.
            if number.is_public()
                && let Some(peer) = self.paths.sees(receipt.peer, seen, received)
            {
                self.views.saw(peer, seen, received);
            }
            self.paths.answered((receipt.peer, number), sent, answer);
        }
    }

    fn read_traffic(&mut self, maps: &Maps, now: Instant) {
        for id in maps.sent.take(SentReader::Paths) {
            self.paths.sent(id, now);
        }
        for id in maps.sent.take(SentReader::LargePaths) {
            self.paths.sent_large(id, now);
        }
    }

    /// Looks for ICMP errors about packets to active peers, if there were any.
    fn read_hints(&mut self, maps: &Maps, now: Instant) {
        let hints = maps.tally_counter(Counter::MtuHint).map(|it| it.packets);
        if hints.is_ok_and(|it| std::mem::replace(&mut self.hints, it) == it) {
            return;
        }
        for id in self.paths.active(now) {
            let Ok(hint) = maps.mtu_hints.get(&id.into(), 0) else {
                continue;
            };
            let at = self.clock.instant(Duration::from_nanos(hint.at_ns));
            if at > self.hints_read_at {
                self.paths.too_large(id, now);
            }
        }
        self.hints_read_at = now;
    }

    /// Opens the socket when the node gets its probe address, and again when that or `ipip0` changes.
    fn open_socket(&mut self, maps: &Maps) {
        let Ok(config) = maps.config.get(&0, 0) else {
            return;
        };
        let is_same = |it: &Config| {
            (it.probe_address, it.ipip0_ifindex, it.udp_port)
                == (config.probe_address, config.ipip0_ifindex, config.udp_port)
        };
        if self.prober.as_ref().is_some_and(|(it, _)| is_same(it)) {
            return;
        }
        self.prober = match Prober::open(maps) {
            Ok(prober) => Some((config, prober)),
            Err(error) => {
                debug!(%error, "no probes yet");
                None
            }
        };
    }

    /// Whether there are other paths than those that were reported last.
    fn report(&mut self, now: Instant) -> bool {
        if now < self.report_at || !self.paths.take_changed() {
            return false;
        }
        let uses = self.paths.uses();
        if uses == self.uses {
            return false;
        }
        self.uses = uses;
        self.has_reported = true;
        if let Some(file) = &self.file
            && let Err(error) = file.write(&self.uses)
            && self.log_limit.allows("paths.json", now)
        {
            warn!(%error, "stateDir: cannot write the paths in use; remedy: make it writable");
        }
        true
    }

    fn log(&mut self, change: &Change, now: Instant) {
        if !self.log_limit.allows(&change.peer, now) {
            return;
        }
        let name = |it: Option<Candidate>| match it {
            Some(it) => format!("{} to {}", it.number.name(), it.address),
            None => "the configured one".into(),
        };
        info!(
            peer = change.peer,
            from = name(change.from),
            to = name(change.to),
            why = change.cause.text(),
            "the path has changed"
        );
    }
}

/// Turns the kernel's monotonic clock into this process' one, which is the same clock, but does not show its value.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    kernel: Duration,
}

impl Clock {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            kernel: clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from),
        }
    }

    /// A time before this clock was made is that time: it belongs to a probe of an earlier process.
    fn instant(&self, kernel: Duration) -> Instant {
        self.instant + kernel.saturating_sub(self.kernel)
    }
}
