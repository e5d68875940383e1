//! A steady stream of numbered packets that counts lost and duplicate ones.

use crate::{host::Host, limits, wait};
use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::{
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Packets that have not arrived this long after the last arrival are lost.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// A receiver that has every packet waits this long for duplicates.
const TICK: Duration = Duration::from_millis(200);

/// A running stream.
#[derive(Debug)]
pub struct Sequence {
    progress: Arc<StreamProgress>,
    sender: JoinHandle<std::io::Result<()>>,
    receiver: JoinHandle<Vec<u32>>,
}

#[derive(Debug, Default)]
struct StreamProgress {
    /// Packets sent.
    sent: AtomicU64,
    /// The sender should end.
    stop: AtomicBool,
    /// The sender has ended: `sent` does not change any more.
    ended: AtomicBool,
}

/// The count of a stream's packets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tallied {
    /// Packets sent.
    pub sent: u64,
    /// Different packets received.
    pub received: u64,
    /// Packets received more than once.
    pub duplicates: u64,
    /// Numbers of the first packets that are missing, ten at most.
    pub missing: Vec<u64>,
}

impl Tallied {
    /// Packets that were sent and did not arrive.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl Sequence {
    /// Starts to send `per_second` packets a second from one host to another. A machine under load may send
    /// fewer: see [`Sequence::wait_for`].
    pub fn start(from: &Host, to: &Host, address: SocketAddrV4, per_second: u64) -> Result<Self> {
        let receiving = to.udp(address.port())?;
        let sending = from.udp(0)?;
        sending.connect(address)?;
        Self::between(sending, receiving, per_second)
    }

    /// Starts to send `per_second` packets a second from one socket, which is connected, to another.
    pub fn between(sending: UdpSocket, receiving: UdpSocket, per_second: u64) -> Result<Self> {
        limits::raise(limits::BACKLOG)?;
        // Packets wait here while the receiving thread is not scheduled; they are not lost in the network.
        setsockopt(&receiving, RcvBufForce, &(64 << 20))?;
        receiving.set_read_timeout(Some(TICK))?;
        let progress = Arc::new(StreamProgress::default());
        let shared = progress.clone();
        let sender = thread::spawn(move || {
            let sent = send(&sending, per_second, &shared);
            shared.ended.store(true, Ordering::Release);
            sent
        });
        let shared = progress.clone();
        let receiver = thread::spawn(move || receive(&receiving, &shared));
        Ok(Self {
            progress,
            sender,
            receiver,
        })
    }

    /// Waits until this many further packets are sent.
    pub fn wait_for(&self, packets: u64) -> Result<()> {
        let sent = || self.progress.sent.load(Ordering::Relaxed);
        let wanted = sent() + packets;
        let max_wait = Duration::from_secs(60);
        wait::within(max_wait, &format!("{packets} packets are sent"), || {
            Ok(sent() >= wanted)
        })
    }

    /// Stops sending, waits until every packet has arrived or until none has arrived for five seconds, and counts.
    pub fn stop(self) -> Result<Tallied> {
        self.progress.stop.store(true, Ordering::Relaxed);
        join(self.sender)?;
        let sent = self.progress.sent.load(Ordering::Relaxed);
        let mut times = join(self.receiver);
        times.resize(times.len().max(sent as usize), 0);
        let missing = (0..sent).filter(|&number| times[number as usize] == 0);
        Ok(Tallied {
            sent,
            received: times.iter().filter(|&&times| times > 0).count() as u64,
            duplicates: times.iter().filter(|&&times| times > 1).count() as u64,
            missing: missing.take(10).collect(),
        })
    }
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn send(socket: &UdpSocket, per_second: u64, progress: &StreamProgress) -> std::io::Result<()> {
    let began = Instant::now();
    let mut sent = 0_u64;
    while !progress.stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * per_second / 1_000_000;
        // After a pause of this thread it catches up in bursts that are too small to overflow a queue.
        for _ in 0..due.saturating_sub(sent).min(per_second / 200) {
            let mut packet = [0; 64];
            packet[..8].copy_from_slice(&sent.to_be_bytes());
            match socket.send(&packet) {
                Ok(_) => sent += 1,
                // An ICMP error for an earlier packet, which is lost and will be counted as lost.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        progress.sent.store(sent, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Returns how many times each number arrived.
fn receive(socket: &UdpSocket, progress: &StreamProgress) -> Vec<u32> {
    let mut times = Vec::<u32>::new();
    let mut different = 0;
    let mut latest = Instant::now();
    let mut packet = [0; 64];
    loop {
        match socket.recv(&mut packet) {
            Ok(64) => {
                let (number, _) = packet.split_at(8);
                let number = u64::from_be_bytes(number.try_into().unwrap_or_default()) as usize;
                if number >= times.len() {
                    times.resize(number + 1, 0);
                }
                times[number] += 1;
                different += u64::from(times[number] == 1);
                latest = Instant::now();
            }
            Err(_) if progress.ended.load(Ordering::Acquire) => {
                let complete = different >= progress.sent.load(Ordering::Relaxed);
                if complete || latest.elapsed() > MAX_WAIT {
                    return times;
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}
