//! Sends and receives raw Ethernet frames, with packet sockets (packet(7)).

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket},
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// The largest frame that is read.
const MAX_FRAME: usize = 256 << 10;
/// Bytes of `struct virtio_net_hdr`.
const VIRTIO_HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
/// Offset of the checksum in the TCP header (RFC 9293).
const TCP_CHECKSUM: u16 = 16;

/// How the kernel of the sender treats a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handling {
    /// Bytes of the linear part; 0 leaves it to the kernel.
    pub linear: u16,
    /// Payload bytes of each segment, for a TCP packet that is to be segmented later, with the offset of its TCP header.
    pub tcp_segments: Option<(u16, u16)>,
    /// The offset of the TCP header of a packet whose checksum is to be filled in later (`CHECKSUM_PARTIAL`).
    pub tcp_checksum: Option<u16>,
}

/// Sends frames through one interface.
#[derive(Debug)]
pub struct FrameSender {
    socket: OwnedFd,
    ifindex: u32,
}

impl FrameSender {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open(ifindex: u32) -> Result<Self> {
        let socket = packet_socket()?;
        set_option(&socket, libc::PACKET_VNET_HDR)?;
        Ok(Self { socket, ifindex })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The kernel refuses it, for example because it is longer than the MTU or not as `handling` says.
    pub fn send(&self, frame: &[u8], handling: Handling) -> io::Result<()> {
        let mut message = vec![0; VIRTIO_HEADER];
        message[2..4].copy_from_slice(&handling.linear.to_ne_bytes());
        if let Some((size, _)) = handling.tcp_segments {
            message[1] = GSO_TCPV4;
            message[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        let segments_at = handling.tcp_segments.map(|(_, at)| at);
        if let Some(at) = handling.tcp_checksum.or(segments_at) {
            message[0] = NEEDS_CHECKSUM;
            message[6..8].copy_from_slice(&at.to_ne_bytes());
            message[8..10].copy_from_slice(&TCP_CHECKSUM.to_ne_bytes());
        }
        message.extend(frame);
        let to = address(self.ifindex, 0x0800);
        // SAFETY: both buffers live until the end of the call and have the given lengths.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => {
                assert_eq!(sent, message.len(), "a frame is sent whole");
                Ok(())
            }
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}

/// Receives the frames that arrive at one interface. Frames that leave through it are ignored.
#[derive(Debug)]
pub struct FrameReceiver(OwnedFd);

impl FrameReceiver {
    /// Opens the socket in the calling thread's network namespace.
    pub fn open(ifindex: u32) -> Result<Self> {
        let socket = packet_socket()?;
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING)?;
        let at = address(ifindex, libc::ETH_P_ALL as u16);
        // SAFETY: the address lives until the end of the call and has the given length.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const at).cast(),
                size_of_val(&at) as libc::socklen_t,
            )
        };
        ensure!(bound == 0, "bind: {}", io::Error::last_os_error());
        Ok(Self(socket))
    }

    /// A frame that has arrived, if there is one.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; MAX_FRAME];
        let len = match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => return Ok(None),
            len => len.context("cannot receive a frame")?,
        };
        frame.truncate(len);
        Ok(Some(frame))
    }
}

fn packet_socket() -> Result<OwnedFd> {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        None::<SockProtocol>,
    )
    .context("cannot open a packet socket")
}

fn set_option(socket: &OwnedFd, option: libc::c_int) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives until the end of the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(
        result == 0,
        "option {option}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

fn address(ifindex: u32, protocol: u16) -> libc::sockaddr_ll {
    // SAFETY: the struct is plain integers and bytes, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    address
}
