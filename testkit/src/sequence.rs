//! A steady stream of numbered packets that counts lost and duplicate ones, and measures how long none arrived.

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

/// A running stream. It ends when this value is dropped.
#[derive(Debug)]
pub struct Sequence {
    progress: Running,
    sender: JoinHandle<std::io::Result<Duration>>,
    receiver: JoinHandle<Vec<Arrivals>>,
}

/// The progress of a stream that ends when this is dropped.
#[derive(Debug)]
struct Running(Arc<StreamProgress>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The arrivals of one packet.
#[derive(Clone, Copy, Debug, Default)]
struct Arrivals {
    /// How often it arrived.
    times: u32,
    /// When it was sent, since the stream began.
    sent_at: Duration,
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
    /// The longest time in which no packet was sent that arrived. The sender's clock measures it, so a receiver that is not
    /// scheduled does not extend it.
    pub longest_gap: Duration,
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
            progress: Running(progress),
            sender,
            receiver,
        })
    }

    /// Waits until this many further packets are sent.
    pub fn wait_for(&self, packets: u64) -> Result<()> {
        let sent = || self.progress.0.sent.load(Ordering::Relaxed);
        let wanted = sent() + packets;
        let max_wait = Duration::from_secs(60);
        wait::within(max_wait, &format!("{packets} packets are sent"), || {
            Ok(sent() >= wanted)
        })
    }

    /// Stops sending, waits until every packet has arrived or until none has arrived for five seconds, and counts.
    pub fn stop(self) -> Result<Tallied> {
        self.progress.0.stop.store(true, Ordering::Relaxed);
        let ended = join(self.sender)?;
        let sent = self.progress.0.sent.load(Ordering::Relaxed);
        let mut packets = join(self.receiver);
        packets.resize(packets.len().max(sent as usize), Arrivals::default());
        let missing = (0..sent).filter(|&number| packets[number as usize].times == 0);
        let arrived = packets.iter().filter(|it| it.times > 0);
        Ok(Tallied {
            sent,
            received: arrived.clone().count() as u64,
            duplicates: arrived.clone().filter(|it| it.times > 1).count() as u64,
            missing: missing.take(10).collect(),
            longest_gap: longest_gap(arrived.map(|it| it.sent_at), ended),
        })
    }
}

/// The longest time between two of these in their order, the begin and the end of the stream included.
fn longest_gap(times: impl Iterator<Item = Duration>, ended: Duration) -> Duration {
    let mut last = Duration::ZERO;
    let gaps = times.chain([ended]).map(|time| {
        let gap = time.saturating_sub(last);
        last = time;
        gap
    });
    gaps.max().unwrap_or_default()
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Returns when it ended, since it began.
fn send(
    socket: &UdpSocket,
    per_second: u64,
    progress: &StreamProgress,
) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut sent = 0_u64;
    while !progress.stop.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * per_second / 1_000_000;
        // After a pause of this thread it catches up in bursts that are too small to overflow a queue.
        for _ in 0..due.saturating_sub(sent).min((per_second / 200).max(1)) {
            let mut packet = [0; 64];
            packet[..8].copy_from_slice(&sent.to_be_bytes());
            packet[8..16].copy_from_slice(&(began.elapsed().as_nanos() as u64).to_be_bytes());
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
    Ok(began.elapsed())
}

/// Returns the arrivals of each number.
fn receive(socket: &UdpSocket, progress: &StreamProgress) -> Vec<Arrivals> {
    let mut packets = Vec::<Arrivals>::new();
    let mut different = 0;
    let mut latest = Instant::now();
    let mut packet = [0; 64];
    loop {
        match socket.recv(&mut packet) {
            Ok(64) => {
                let number = |at: usize| {
                    let bytes = packet[at..at + 8].try_into().unwrap_or_default();
                    u64::from_be_bytes(bytes)
                };
                let index = number(0) as usize;
                if index >= packets.len() {
                    packets.resize(index + 1, Arrivals::default());
                }
                let arrivals = &mut packets[index];
                arrivals.times += 1;
                arrivals.sent_at = Duration::from_nanos(number(8));
                different += u64::from(arrivals.times == 1);
                latest = Instant::now();
            }
            Err(_) if progress.ended.load(Ordering::Acquire) => {
                let complete = different >= progress.sent.load(Ordering::Relaxed);
                if complete || latest.elapsed() > MAX_WAIT {
                    return packets;
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_found_between_packets_and_at_both_ends() {
        let gap = |times: &[u64], ended| {
            let times = times.iter().copied().map(Duration::from_secs);
            longest_gap(times, Duration::from_secs(ended)).as_secs()
        };
        assert_eq!(gap(&[1, 2, 5, 6], 7), 3);
        assert_eq!(gap(&[4, 5], 6), 4);
        assert_eq!(gap(&[1, 2], 9), 7);
        assert_eq!(gap(&[], 9), 9);
    }
}
