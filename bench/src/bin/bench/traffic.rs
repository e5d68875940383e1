//! The traffic itself: what the threads of client and server do for ever.

use crate::metrics::Load;
use nix::libc;
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Datagrams of one system call.
const BATCH: usize = 32;
/// Bytes of a datagram's payload.
const DATAGRAM: usize = 64;
/// Bytes of one write to a stream.
const WRITE: usize = 128 << 10;
/// Bytes of one write to a paced stream: what the kernel sends as one packet at most.
const PACED_WRITE: usize = 64 << 10;

/// Whether one who waits for data sleeps or polls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// In the kernel, which must wake him.
    Asleep,
    /// By asking again and again.
    Polling,
}

/// Serves one connection after the other, until the process ends.
pub fn take_connections(listener: &TcpListener, load: Load, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    for stream in listener.incoming() {
        // The client goes away in the midst of things when the measurement is over.
        let _ = stream.and_then(|stream| take(stream, load, &mut buffer, count));
    }
}

fn take(mut stream: TcpStream, load: Load, buffer: &mut [u8], count: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(load.wait() == Wait::Polling)?;
    loop {
        let len = match polled(|| stream.read(buffer))? {
            0 => return Ok(()),
            len => len,
        };
        if matches!(load, Load::Stream | Load::PacedStream) {
            count.fetch_add(len as u64, Ordering::Relaxed);
        } else {
            stream.write_all(&buffer[..len])?;
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Repeats what would have to wait on a socket that does not.
fn polled<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match action() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Counts what arrives, until the process ends.
pub fn take_datagrams(socket: &UdpSocket, wait: Wait, count: &AtomicU64) {
    let mut payload = [0; 2048];
    let mut batch = Batch::new(&mut payload);
    let flags = match wait {
        Wait::Asleep => libc::MSG_WAITFORONE,
        Wait::Polling => libc::MSG_DONTWAIT,
    };
    loop {
        // SAFETY: `batch` points at headers, and they at a buffer, that outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                batch.headers.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        count.fetch_add(received.max(0) as u64, Ordering::Relaxed);
    }
}

/// Writes as much as goes, or so many bytes a second.
pub fn stream(to: SocketAddrV4, pace: Option<f64>) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let data = vec![0x5a; WRITE];
    let Some(rate) = pace else {
        loop {
            stream.write_all(&data)?;
        }
    };
    stream.set_nodelay(true)?;
    let mut pace = Pace::new(rate / PACED_WRITE as f64);
    loop {
        pace.wait();
        stream.write_all(&data[..PACED_WRITE])?;
    }
}

/// One byte there and back, timed each.
pub fn round_trips(
    to: SocketAddrV4,
    wait: Wait,
    count: &AtomicU64,
    latencies: &Latencies,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(wait == Wait::Polling)?;
    loop {
        let began = Instant::now();
        round_trip(&mut stream)?;
        latencies.note(began.elapsed());
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection for each byte there and back.
pub fn connections(to: SocketAddrV4) -> io::Result<()> {
    loop {
        round_trip(&mut TcpStream::connect(to)?)?;
    }
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[1])?;
    // One byte is there whole or not at all.
    polled(|| stream.read_exact(&mut [0]))
}

/// Sends as many as go, or so many a second.
pub fn datagrams(to: SocketAddrV4, pace: Option<f64>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let mut payload = [0x5a; DATAGRAM];
    let mut batch = Batch::new(&mut payload);
    let mut pace = pace.map(|rate| Pace::new(rate / BATCH as f64));
    loop {
        if let Some(pace) = &mut pace {
            pace.wait();
        }
        // SAFETY: `batch` points at headers, and they at a buffer, that outlive the call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                batch.headers.as_mut_ptr(),
                BATCH as u32,
                0,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
}

/// Turns at equal distances. Who is late hurries, so that the rate holds.
struct Pace {
    next: Instant,
    distance: Duration,
}

impl Pace {
    fn new(per_second: f64) -> Self {
        Self {
            next: Instant::now(),
            distance: Duration::from_secs_f64(1.0 / per_second),
        }
    }

    fn wait(&mut self) {
        self.next += self.distance;
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}

/// Times of round trips.
#[derive(Default)]
pub struct Latencies {
    nanoseconds: Mutex<Vec<u64>>,
}

impl Latencies {
    fn note(&self, took: Duration) {
        let took = took.as_nanos() as u64;
        let mut all = self.nanoseconds.lock();
        all.as_mut()
            .unwrap_or_else(|poison| poison.get_mut())
            .push(took);
    }

    /// Drops what was noted so far.
    pub fn forget(&self) {
        self.nanoseconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// The times, in microseconds, below which these shares of the round trips lie.
    pub fn quantiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let mut sorted = self
            .nanoseconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        sorted.sort_unstable();
        shares.map(|share| {
            let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
            sorted.get(index).map_or(f64::NAN, |ns| *ns as f64 / 1e3)
        })
    }
}

/// Message headers that all point at one buffer: its content is of no interest.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    /// What the headers point at. Boxed, so that it stays where it is.
    _vector: Box<libc::iovec>,
}

impl Batch {
    fn new(buffer: &mut [u8]) -> Self {
        let mut vector = Box::new(libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        });
        let headers = (0..BATCH)
            .map(|_| {
                // SAFETY: all-zero bytes are a valid `mmsghdr`: no name, no data, no control.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = &mut *vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            headers,
            _vector: vector,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_noted_since_it_forgot() {
        let latencies = Latencies::default();
        latencies.note(Duration::from_secs(1));
        latencies.forget();
        for microseconds in (1..=100).rev() {
            latencies.note(Duration::from_micros(microseconds));
        }
        assert_eq!(latencies.quantiles([0.0, 0.5, 0.99]), [1.0, 51.0, 99.0]);
    }
}
