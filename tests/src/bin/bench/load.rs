//! The load generator: a client and a server process, each inside a pod. The server counts.

use crate::{
    beds::Bed,
    metrics::{Load, Metric},
};
use anyhow::{Context, Result, bail};
use clap::Args;
use ipip_tests::host::{Host, set_option};
use nix::libc;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Flow N uses this port + N.
const FIRST_PORT: u16 = 5100;
/// Not measured: slow start, first route lookups.
const WARM_UP: Duration = Duration::from_millis(200);
/// Datagrams of one system call.
const BATCH: usize = 32;
/// Bytes of a datagram's payload.
const DATAGRAM: usize = 64;

/// Runs one measurement between the pods of `bed`; returns the rate in the metric's unit.
pub fn measure(bed: &Bed, metric: &Metric, duration: Duration) -> Result<f64> {
    let flows = metric.flows.to_string();
    let load = load_name(metric.load);
    let mut server = Running::start(
        bed.server(),
        &[
            "server",
            &load,
            "--flows",
            &flows,
            "--milliseconds",
            &duration.as_millis().to_string(),
        ],
    )?;
    let ready = server.line()?;
    if ready.trim() != "ready" {
        bail!("the server says {ready:?}");
    }
    let client = Running::start(
        bed.client(),
        &[
            "client",
            &load,
            &bed.address().to_string(),
            "--flows",
            &flows,
        ],
    )?;
    let per_second: f64 = server.line()?.trim().parse().context("no rate")?;
    drop(client);
    Ok(per_second / metric.per_unit)
}

/// A part of this program in a pod. Dropping it kills it.
struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = host.enter(|| command.spawn())??;
        let output = child.stdout.take().context("a child without output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!(
                "a part of the benchmark ended early: {}",
                self.child.wait()?
            );
        }
        Ok(line)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load_name(load: Load) -> String {
    clap::ValueEnum::to_possible_value(&load)
        .map(|value| value.get_name().to_string())
        .unwrap_or_default()
}

/// Arguments of the server part.
#[derive(Debug, Args)]
pub struct Server {
    load: Load,
    #[arg(long)]
    flows: u16,
    #[arg(long)]
    milliseconds: u64,
}

/// Arguments of the client part.
#[derive(Debug, Args)]
pub struct Client {
    load: Load,
    to: Ipv4Addr,
    #[arg(long)]
    flows: u16,
}

impl Server {
    /// Prints `ready`, waits for the load, measures, prints the rate per second, ends.
    pub fn run(&self) -> Result<()> {
        let count = AtomicU64::new(0);
        thread::scope(|scope| {
            for flow in 0..self.flows {
                let at = (Ipv4Addr::UNSPECIFIED, FIRST_PORT + flow);
                let count = &count;
                match self.load {
                    Load::Datagrams => {
                        let socket = UdpSocket::bind(at)?;
                        // Never the socket's queue shall be what drops.
                        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
                        scope.spawn(move || take_datagrams(&socket, count));
                    }
                    load => {
                        let listener = TcpListener::bind(at)?;
                        scope.spawn(move || take_connections(&listener, load, count));
                    }
                }
            }
            println!("ready");
            while count.load(Ordering::Relaxed) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(WARM_UP);
            let (began, before) = (Instant::now(), count.load(Ordering::Relaxed));
            thread::sleep(Duration::from_millis(self.milliseconds));
            let after = count.load(Ordering::Relaxed);
            println!(
                "{}",
                (after - before) as f64 / began.elapsed().as_secs_f64()
            );
            std::io::stdout().flush()?;
            // The threads wait for ever.
            std::process::exit(0);
        })
    }
}

impl Client {
    /// Offers load until it is killed.
    pub fn run(&self) -> Result<()> {
        let flows: Vec<_> = (0..self.flows)
            .map(|flow| {
                let to = SocketAddrV4::new(self.to, FIRST_PORT + flow);
                let load = self.load;
                thread::spawn(move || match load {
                    Load::Stream => stream(to),
                    Load::RequestResponse => request_response(to),
                    Load::Connections => connections(to),
                    Load::Datagrams => datagrams(to),
                })
            })
            .collect();
        for flow in flows {
            match flow.join() {
                Ok(ended) => ended?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    }
}

/// Serves one connection after the other, until the process ends.
fn take_connections(listener: &TcpListener, load: Load, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    for stream in listener.incoming() {
        // The client goes away in the midst of things when the measurement is over.
        let _ = stream.and_then(|stream| take(stream, load, &mut buffer, count));
    }
}

fn take(
    mut stream: TcpStream,
    load: Load,
    buffer: &mut [u8],
    count: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let len = stream.read(buffer)?;
        if len == 0 {
            return Ok(());
        }
        if load == Load::Stream {
            count.fetch_add(len as u64, Ordering::Relaxed);
        } else {
            stream.write_all(&buffer[..len])?;
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn take_datagrams(socket: &UdpSocket, count: &AtomicU64) {
    let mut payload = [0; 2048];
    let mut batch = Batch::new(&mut payload);
    loop {
        // SAFETY: `batch` points at headers, and they at a buffer, that outlive the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                batch.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        count.fetch_add(received.max(0) as u64, Ordering::Relaxed);
    }
}

fn stream(to: SocketAddrV4) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let data = vec![0x5a; 128 << 10];
    loop {
        stream.write_all(&data)?;
    }
}

fn request_response(to: SocketAddrV4) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    loop {
        round_trip(&mut stream)?;
    }
}

fn connections(to: SocketAddrV4) -> std::io::Result<()> {
    loop {
        round_trip(&mut TcpStream::connect(to)?)?;
    }
}

fn round_trip(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])
}

fn datagrams(to: SocketAddrV4) -> std::io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let mut payload = [0x5a; DATAGRAM];
    let mut batch = Batch::new(&mut payload);
    loop {
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
            return Err(std::io::Error::last_os_error());
        }
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
