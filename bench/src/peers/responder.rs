//! All peers of the measured node in one thread: it answers each probe as the programs of the peer would.

use anyhow::{Context, Result};
use ipip_abi::{
    Candidate, DEFAULT_UDP_PORT,
    probe::{ProbeMessage, ProbeSecret},
    wire::{ETH_LEN, PROTO_UDP, UDP_LEN},
};
use ipip_datapath::{Maps, first_values};
use ipip_netlink::Netlink;
use ipip_testkit::{
    capture::Packet,
    frames::{FrameReceiver, FrameSender, Handling},
    host::Host,
    packet_builder,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use zerocopy::{FromBytes, IntoBytes};

/// Between two looks at the interface.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Source port of answers inside UDP. A peer takes it from its hash of the flow.
const SOURCE_PORT: u16 = 50_000;
/// Bytes of the two MACs at the beginning of a frame.
const MACS: usize = 12;

/// The peers behind an interface. Dropping this value ends them.
pub struct Responder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the thread is told, and what it has counted.
#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    fails: AtomicBool,
    probes: AtomicU64,
    bytes: AtomicU64,
    data: AtomicU64,
}

/// What was counted until now.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// Probes that arrived.
    pub probes: u64,
    /// Bytes of probes and answers, with their outer headers.
    pub bytes: u64,
    /// Other packets that arrived.
    pub data: u64,
}

/// The peers as the thread knows them, by their indexes.
pub struct Peers {
    /// The secret that each one shares with the node, by its identity.
    secrets: HashMap<[u8; 8], (u16, ProbeSecret)>,
    /// Those of the node's own realm: only they hear private probes.
    pub own_realm: BTreeSet<u16>,
    /// Those that protocol 4 does not reach after [`Responder::fail`].
    pub failing: BTreeSet<u16>,
    /// The public address of the node, which NAT would show to the peers.
    pub public: Ipv4Addr,
}

impl Peers {
    /// The peers whose secrets the node's agent has derived.
    pub fn new(maps: &Maps, public: Ipv4Addr) -> Result<Self> {
        let secrets = first_values(&maps.probe_secrets, maps.probe_secrets.len())?;
        let known = (0..).zip(secrets).filter(|(_, it)| it.is_set());
        Ok(Self {
            secrets: known.map(|it| (it.1.peer, it)).collect(),
            own_realm: BTreeSet::new(),
            failing: BTreeSet::new(),
            public,
        })
    }

    /// The answer to a probe, with its outer headers; none if the packet is no probe, or does not reach its peer.
    fn answer(&self, outer: &Packet, fails: bool) -> Result<Option<Vec<u8>>> {
        let Some(inner) = outer.inner() else {
            return Ok(None);
        };
        let message = inner.payload.get(UDP_LEN..).unwrap_or_default();
        let Ok((mut message, _)) = ProbeMessage::read_from_prefix(message) else {
            return Ok(None);
        };
        let Some((index, secret)) = self.secrets.get(&message.receiver) else {
            return Ok(None);
        };
        let is_private = Candidate::try_from(message.candidate).is_ok_and(Candidate::is_private);
        let is_udp = outer.protocol.0 == PROTO_UDP;
        let is_lost = is_private != self.own_realm.contains(index)
            || fails && !is_udp && self.failing.contains(index);
        if is_lost || !message.is_authentic(secret.key) {
            return Ok(None);
        }
        message.kind = ProbeMessage::ANSWER;
        message.flags = ProbeMessage::ACCEPTED;
        (message.sender, message.receiver) = (secret.peer, secret.own);
        let seen = if is_private {
            outer.source
        } else {
            self.public
        };
        message.seen = seen.into();
        let message = message.signed(secret.key);
        let at = |address| SocketAddrV4::new(address, DEFAULT_UDP_PORT);
        let ends = (at(inner.destination), at(inner.source));
        let inner = packet_builder::udp(ends.0, ends.1, message.as_bytes())?;
        let (from, to) = (outer.destination, outer.source);
        let answer = if is_udp {
            let from = SocketAddrV4::new(from, SOURCE_PORT);
            packet_builder::udp(from, at(to), &inner)?
        } else {
            packet_builder::ipip(from, to, &inner)?
        };
        Ok(Some(answer))
    }
}

impl Responder {
    /// Answers probes that arrive at the interface `ifname` of `host`.
    pub fn start(host: &Host, ifname: &str, peers: Peers) -> Result<Self> {
        let (receiver, sender) = host.enter(|| {
            let link = Netlink::open()?.link(ifname)?;
            let link = link.with_context(|| format!("no interface {ifname}"))?;
            let index = link.index;
            anyhow::Ok((FrameReceiver::open(index)?, FrameSender::open(index)?))
        })??;
        let shared = Arc::<Shared>::default();
        let of_thread = shared.clone();
        let thread = thread::spawn(move || of_thread.run(&receiver, &sender, &peers));
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// From now on, protocol 4 does not reach [`Peers::failing`].
    pub fn fail(&self) {
        self.shared.fails.store(true, Ordering::Relaxed);
    }

    /// What was counted until now.
    ///
    /// # Errors
    /// What has ended the thread.
    pub fn count(&mut self) -> Result<Count> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            self.end()?;
        }
        let read = |it: &AtomicU64| it.load(Ordering::Relaxed);
        Ok(Count {
            probes: read(&self.shared.probes),
            bytes: read(&self.shared.bytes),
            data: read(&self.shared.data),
        })
    }

    fn end(&mut self) -> Result<()> {
        self.shared.ends.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("answering probes: {error:#}");
        }
    }
}

impl Shared {
    fn run(&self, receiver: &FrameReceiver, sender: &FrameSender, peers: &Peers) -> Result<()> {
        while !self.ends.load(Ordering::Relaxed) {
            let Some(frame) = receiver.receive()? else {
                thread::sleep(POLL_INTERVAL);
                continue;
            };
            let packet = &frame[ETH_LEN.min(frame.len())..];
            let Some(outer) = Packet::parse(packet) else {
                continue;
            };
            if !outer.is_probe() {
                self.data.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let answer = peers.answer(&outer, self.fails.load(Ordering::Relaxed))?;
            self.probes.fetch_add(1, Ordering::Relaxed);
            let bytes = packet.len() + answer.as_ref().map_or(0, Vec::len);
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            if let Some(answer) = answer {
                let (to, rest) = frame.split_at(MACS / 2);
                let head = [&rest[..MACS / 2], to, &frame[MACS..ETH_LEN]].concat();
                sender.send(&[head, answer].concat(), Handling::default())?;
            }
        }
        Ok(())
    }
}
