use crate::{
    Error, NetNs, Result,
    socket::{RECEIVE_BYTES, messages},
};
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{setsockopt, sockopt},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

/// Room for the events of some 20,000 routes that change at once.
const SOCKET_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// Tells that links, IPv4 addresses, IPv4 routes or neighbours of one network namespace changed.
///
/// Its descriptor becomes readable when there is something to [`drain`](Events::drain).
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
    /// Whose route changes are no news.
    own_port: Option<u32>,
}

/// What changed since it was last asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// An interface came, went or changed.
    pub links: bool,
    /// An IPv4 address came or went.
    pub addresses: bool,
    /// An IPv4 route came, went or changed, in whatever table.
    pub routes: bool,
    /// An IPv4 neighbour came, went or changed.
    pub neighbours: bool,
    /// The kernel had more to tell than the socket could hold: anything may have changed.
    pub lost: bool,
}

impl Changes {
    /// Whether anything did.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// What changed by either.
    pub fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
            neighbours: self.neighbours || other.neighbours,
            lost: self.lost || other.lost,
        }
    }
}

impl Events {
    /// Listens in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let mut socket = at(Socket::new(NETLINK_ROUTE))?;
        at(socket.set_non_blocking(true))?;
        // Without the privilege to go beyond net.core.rmem_max take what it allows.
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            at(setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES).map_err(Into::into))?;
        }
        at(socket.bind(&SocketAddr::new(0, 0)))?;
        for group in [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
        ] {
            at(socket.add_membership(group))?;
        }
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
            own_port: None,
        })
    }

    /// Listens in `ns`; the calling thread stays where it is.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Takes no notice of routes changed through the socket with this [`port`](crate::Netlink::port):
    /// who changes them knows.
    pub fn ignore_routes_of(&mut self, port: u32) {
        self.own_port = Some(port);
    }

    /// Takes everything that the socket holds; never waits.
    pub fn drain(&mut self) -> Result<Changes> {
        let mut changes = Changes::default();
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(len) => {
                    changes.lost |= len > self.buffer.len();
                    for message in messages(&self.buffer) {
                        changes.note(message.ok(), self.own_port);
                    }
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(changes),
                    Some(Errno::ENOBUFS) => changes.lost = true,
                    Some(Errno::EINTR) => {}
                    _ => return at(Err(error)),
                },
            }
        }
    }
}

impl Changes {
    /// Counts a message in; one that cannot be read (`None`) is one that was lost.
    fn note(&mut self, message: Option<&[u8]>, own_port: Option<u32>) {
        let Some(message) = message.map(NetlinkBuffer::new) else {
            self.lost = true;
            return;
        };
        match message.message_type() {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.links = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
            // What the kernel does by itself has port 0.
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.routes |= own_port != Some(message.port_number());
            }
            // The group tells of IPv6 neighbours and of bridges' tables too.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
                self.neighbours |= message.payload().first() == Some(&(libc::AF_INET as u8));
            }
            _ => {}
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn at<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Socket {
        attempt: "listen to changes".into(),
        source,
    })
}
