//! Echo servers that also report the client's address as they see it.

use crate::host::{Host, IpMtuDiscover};
use anyhow::{Context, Result, ensure};
use nix::{
    libc,
    sys::{
        socket::{setsockopt, sockopt::ReceiveTimeout},
        time::TimeVal,
    },
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How often a server checks whether it should end.
const TICK: Duration = Duration::from_millis(50);

/// A TCP and a UDP echo server on one port of a host. It ends when dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts both servers. Each sends a line with the client's address as seen here. After it, the TCP server
    /// returns every byte of the connection, and the UDP server the datagram.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = host.listen(port)?;
        // The option also limits accept().
        setsockopt(
            &listener,
            ReceiveTimeout,
            &TimeVal::new(0, TICK.as_micros() as i64),
        )?;
        let socket = host.udp(port)?;
        socket.set_read_timeout(Some(TICK))?;
        let stopped = stop.clone();
        let tcp = thread::spawn(move || serve_tcp(&listener, &stopped));
        let stopped = stop.clone();
        let udp = thread::spawn(move || serve_udp(&socket, &stopped));
        Ok(Self {
            stop,
            servers: vec![tcp, udp],
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The next server on this port must find it free.
        for server in self.servers.drain(..) {
            if server.join().is_err() {
                eprintln!("an echo server panicked");
            }
        }
    }
}

fn serve_tcp(listener: &TcpListener, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        if let Ok((stream, client)) = listener.accept() {
            thread::spawn(move || echo_stream(stream, client));
        }
    }
}

/// Echoes all bytes. An error ends only this connection.
fn echo_stream(mut stream: TcpStream, client: SocketAddr) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .ok()?;
    writeln!(stream, "{client}").ok()?;
    let mut reader = stream.try_clone().ok()?;
    std::io::copy(&mut reader, &mut stream).ok()?;
    stream.shutdown(Shutdown::Write).ok()
}

fn serve_udp(socket: &UdpSocket, stopped: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stopped.load(Ordering::Relaxed) {
        if let Ok((len, client)) = socket.recv_from(&mut buffer) {
            let mut reply = format!("{client}\n").into_bytes();
            reply.extend_from_slice(&buffer[..len]);
            // The client may have ended already.
            let _ = socket.send_to(&reply, client);
        }
    }
}

/// Sends `bytes` over a new TCP connection, checks that the same bytes come back, and returns the client's
/// address as the server saw it. `source_port` 0 is any port.
pub fn tcp_exchange(
    host: &Host,
    source_port: u16,
    to: SocketAddrV4,
    bytes: usize,
) -> Result<SocketAddrV4> {
    let stream = if source_port == 0 {
        host.connect(to)?
    } else {
        host.enter(|| connect_from(source_port, to))?
            .with_context(|| format!("cannot connect from {} to {to}", host.name()))?
    };
    exchange(stream, bytes).with_context(|| format!("TCP from {} to {to}", host.name()))
}

/// Sends a datagram until its echo comes, three times at most, and returns the client's address as the server
/// saw it.
pub fn udp_exchange(
    host: &Host,
    source_port: u16,
    to: SocketAddrV4,
    bytes: usize,
) -> Result<SocketAddrV4> {
    let socket = host.udp(source_port)?;
    // Without DF, datagrams larger than the MTU travel as fragments.
    setsockopt(&socket, IpMtuDiscover, &libc::IP_PMTUDISC_DONT)?;
    // A connected socket receives only datagrams from `to`.
    socket.connect(to)?;
    let sent = pattern(bytes);
    let mut buffer = vec![0; bytes + 64];
    let mut received = Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
    for _ in 0..3 {
        received = socket.send(&sent).and_then(|_| socket.recv(&mut buffer));
        if received.is_ok() {
            break;
        }
    }
    let len = received
        .with_context(|| format!("no UDP echo of {bytes} bytes from {to} to {}", host.name()))?;
    let end_of_line = buffer[..len]
        .iter()
        .position(|&byte| byte == b'\n')
        .context("an echo without the client's address")?;
    ensure!(
        buffer[end_of_line + 1..len] == sent,
        "the UDP echo from {to} is not what was sent"
    );
    Ok(std::str::from_utf8(&buffer[..end_of_line])?.parse()?)
}

fn exchange(mut stream: TcpStream, bytes: usize) -> Result<SocketAddrV4> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let sent = pattern(bytes);
    let writer = thread::spawn({
        let sent = sent.clone();
        move || -> std::io::Result<()> {
            stream.write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        }
    });
    let mut received = Vec::with_capacity(bytes);
    let read = reader.read_to_end(&mut received);
    match writer.join() {
        Ok(written) => written.context("cannot send")?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    read.with_context(|| format!("cannot read more than {} bytes", received.len()))?;
    ensure!(
        received == sent,
        "{} bytes came back, not the {bytes} that were sent",
        received.len()
    );
    Ok(line.trim().parse()?)
}

/// Connects from a given port, which may have been used before.
fn connect_from(source_port: u16, to: SocketAddrV4) -> Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
        sockopt::{Linger, ReceiveTimeout, ReuseAddr, SendTimeout},
    };
    use std::os::fd::AsRawFd;
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let timeout = TimeVal::new(5, 0);
    setsockopt(&socket, ReceiveTimeout, &timeout)?;
    setsockopt(&socket, SendTimeout, &timeout)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    // With a linger time of 0, close() resets the connection, and the port is free at once on both sides.
    setsockopt(
        &socket,
        Linger,
        &libc::linger {
            l_onoff: 1,
            l_linger: 0,
        },
    )?;
    bind(
        socket.as_raw_fd(),
        &SockaddrIn::new(0, 0, 0, 0, source_port),
    )?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(socket))
}

/// Pseudo-random bytes (xorshift), the same in each call.
fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
