//! UDP: small datagrams, many with each system call. nix wraps these calls but rebuilds the headers each
//! time, which would cost more than the datapath that is measured.

use super::pace::Pace;
use crate::compare::metrics::Wait;
use nix::libc;
use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering},
};

/// Datagrams of one system call.
const BATCH: usize = 32;
/// Bytes of a datagram's payload.
const DATAGRAM: usize = 64;

/// Counts the datagrams that arrive, until the process ends.
pub fn receive(socket: &UdpSocket, wait: Wait, count: &AtomicU64) {
    let mut payload = [0; 2048];
    let mut batch = Batch::new(&mut payload);
    let flags = match wait {
        Wait::Sleep => libc::MSG_WAITFORONE,
        Wait::Poll => libc::MSG_DONTWAIT,
    };
    loop {
        // SAFETY: the pointer is that of `BATCH` initialized headers in `batch`. Each points at the iovec in
        // `batch`, and that at `payload`; both outlive the call.
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

/// Sends as fast as possible, or this many datagrams per second.
pub fn send(to: SocketAddrV4, per_second: Option<f64>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let mut payload = [0x5a; DATAGRAM];
    let mut batch = Batch::new(&mut payload);
    let mut pace = per_second.map(|rate| Pace::new(rate / BATCH as f64));
    loop {
        if let Some(pace) = &mut pace {
            pace.wait();
        }
        // SAFETY: the pointer is that of `BATCH` initialized headers in `batch`. Each points at the iovec in
        // `batch`, and that at `payload`; both outlive the call.
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

/// Message headers that all point at one buffer; its content does not matter.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    /// The headers point at it, so it must not move; hence the box.
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
