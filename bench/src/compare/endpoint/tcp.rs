//! TCP: streams, round trips and connections.

use super::pace::Pace;
use crate::compare::metrics::{Load, Wait};
use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes of one write to a stream.
const WRITE: usize = 128 << 10;
/// Bytes of one write to a paced stream: at most one GSO packet.
const PACED_WRITE: usize = 64 << 10;

/// Serves connections one after another, until the process ends.
pub fn serve(listener: &TcpListener, load: Load, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    for stream in listener.incoming() {
        // The client is killed at the end of the measurement, which is an error for the connection.
        let _ = stream.and_then(|stream| serve_stream(stream, load, &mut buffer, count));
    }
}

fn serve_stream(
    mut stream: TcpStream,
    load: Load,
    buffer: &mut [u8],
    count: &AtomicU64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(load.wait() == Wait::Poll)?;
    loop {
        let len = poll(|| stream.read(buffer))?;
        if len == 0 {
            return Ok(());
        }
        if load.is_bulk() {
            count.fetch_add(len as u64, Ordering::Relaxed);
        } else {
            stream.write_all(&buffer[..len])?;
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Repeats an action on a non-blocking socket until it no longer would block.
fn poll<T>(mut action: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match action() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Writes as fast as possible, or this many bytes per second.
pub fn stream(to: SocketAddrV4, bytes_per_second: Option<f64>) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let data = vec![0x5a; WRITE];
    let Some(rate) = bytes_per_second else {
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

/// Requests and responses of one byte over one connection, each counted and timed.
pub fn round_trips(
    to: SocketAddrV4,
    wait: Wait,
    count: &AtomicU64,
    latencies: &Latencies,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(wait == Wait::Poll)?;
    loop {
        let began = Instant::now();
        round_trip(&mut stream)?;
        latencies.record(began.elapsed());
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A new connection for each request and response of one byte.
pub fn connections(to: SocketAddrV4) -> io::Result<()> {
    loop {
        round_trip(&mut TcpStream::connect(to)?)?;
    }
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&[1])?;
    // A read of one byte is never partial, so it can be repeated.
    poll(|| stream.read_exact(&mut [0]))
}

/// The times of round trips.
#[derive(Default)]
pub struct Latencies {
    nanoseconds: Mutex<Vec<u64>>,
}

impl Latencies {
    fn record(&self, took: Duration) {
        self.lock().push(took.as_nanos() as u64);
    }

    /// Removes all times that were recorded so far.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The recorded times in microseconds.
    pub fn microseconds(&self) -> Vec<f64> {
        self.lock().iter().map(|ns| *ns as f64 / 1e3).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.nanoseconds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_those_since_the_last_clear() {
        let latencies = Latencies::default();
        latencies.record(Duration::from_secs(1));
        latencies.clear();
        latencies.record(Duration::from_micros(3));
        latencies.record(Duration::from_nanos(1500));
        assert_eq!(latencies.microseconds(), [3.0, 1.5]);
    }
}
