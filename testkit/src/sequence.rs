//! A steady stream of numbered packets, and which of them arrived.

use crate::host::Host;
use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::{
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A running stream.
#[derive(Debug)]
pub struct Sequence {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<std::io::Result<u64>>,
    receiver: JoinHandle<Vec<u32>>,
}

/// What became of a stream.
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
    /// Starts to send `per_second` packets a second from one host to another.
    pub fn start(from: &Host, to: &Host, address: SocketAddrV4, per_second: u64) -> Result<Self> {
        let receiving = to.udp(address.port())?;
        // A receiver that is not scheduled for a while must not look like a loss in the network.
        setsockopt(&receiving, RcvBufForce, &(64 << 20))?;
        receiving.set_read_timeout(Some(Duration::from_millis(500)))?;
        let sending = from.udp(0)?;
        sending.connect(address)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = thread::spawn(move || send(&sending, per_second, &stopped));
        let stopped = stop.clone();
        let receiver = thread::spawn(move || receive(&receiving, &stopped));
        Ok(Self {
            stop,
            sender,
            receiver,
        })
    }

    /// Stops it, waits for what is on its way, and counts.
    pub fn stop(self) -> Result<Tallied> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender)?;
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

fn send(socket: &UdpSocket, per_second: u64, stopped: &AtomicBool) -> std::io::Result<u64> {
    let began = Instant::now();
    let mut sent = 0_u64;
    while !stopped.load(Ordering::Relaxed) {
        let due = began.elapsed().as_micros() as u64 * per_second / 1_000_000;
        // After a pause of our own we catch up in small bursts that no queue overflows from.
        for _ in 0..due.saturating_sub(sent).min(per_second / 200) {
            let mut packet = [0; 64];
            packet[..8].copy_from_slice(&sent.to_be_bytes());
            match socket.send(&packet) {
                Ok(_) => sent += 1,
                // An ICMP error of an earlier packet: that one is lost, and will be counted so.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

/// How many times each number came.
fn receive(socket: &UdpSocket, stopped: &AtomicBool) -> Vec<u32> {
    let mut times = Vec::<u32>::new();
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
            }
            Ok(_) => {}
            Err(_) if stopped.load(Ordering::Relaxed) => return times,
            Err(_) => {}
        }
    }
}
