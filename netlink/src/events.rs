//! Notifications of changes.

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

/// Room for the events of about 20,000 routes that change at once.
const SOCKET_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// Reports changes of links, IPv4 addresses, routes and their rules, neighbours and settings of one network namespace,
/// and the removal of traffic-control filters.
///
/// The descriptor becomes readable when there are events to [`drain`](Events::drain).
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
    /// Netlink port whose route changes are ignored.
    own_port: Option<u32>,
}

/// The kinds of objects that changed since the last call of [`Events::drain`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// An interface was added, removed or changed.
    pub links: bool,
    /// An IPv4 address was added or removed.
    pub addresses: bool,
    /// An IPv4 route of any table, or a rule of policy routing, was added, removed or changed.
    pub routes: bool,
    /// An IPv4 neighbour was added, removed or changed.
    pub neighbours: bool,
    /// An IPv4 setting that the kernel announces was changed: `forwarding` or `rp_filter` of an interface.
    pub settings: bool,
    /// A traffic-control filter or a queueing discipline was removed.
    pub filters: bool,
    /// Watched nftables rules were changed ([`crate::RulesetEvents`]).
    pub ruleset: bool,
    /// What has no events may have changed.
    pub lost: bool,
    /// Anything may have changed, also tables whose every change has an event: one may have been lost.
    pub tables: bool,
}

impl Changes {
    /// Anything may have changed.
    pub const EVERYTHING: Self = Self {
        links: true,
        addresses: true,
        routes: true,
        neighbours: true,
        settings: true,
        filters: true,
        ruleset: true,
        lost: true,
        tables: true,
    };

    /// What has no events may have changed. Links, addresses, routes and their rules have some, so they are the same if they look the
    /// same.
    pub const WITHOUT_EVENTS: Self = Self {
        links: false,
        addresses: false,
        routes: false,
        ..Self::EVERYTHING
    };

    /// Whether anything changed.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether neighbours changed, and nothing else.
    pub fn only_neighbours(&self) -> bool {
        let neighbours = Self {
            neighbours: true,
            ..Self::default()
        };
        *self == neighbours
    }

    /// Whether routes may have changed: the kernel deletes those of a link or an address with it, without a report.
    pub fn may_be_of_routes(&self) -> bool {
        self.links || self.addresses || self.routes || self.tables
    }

    /// The union of the kinds in `self` and `other`.
    pub fn and(self, other: Self) -> Self {
        Self {
            links: self.links || other.links,
            addresses: self.addresses || other.addresses,
            routes: self.routes || other.routes,
            neighbours: self.neighbours || other.neighbours,
            settings: self.settings || other.settings,
            filters: self.filters || other.filters,
            ruleset: self.ruleset || other.ruleset,
            lost: self.lost || other.lost,
            tables: self.tables || other.tables,
        }
    }
}

impl Events {
    /// Subscribes in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV4_NETCONF,
            libc::RTNLGRP_TC,
        ];
        let socket = subscribe(NETLINK_ROUTE, &groups)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(RECEIVE_BYTES),
            own_port: None,
        })
    }

    /// Subscribes in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Self> {
        ns.run(Self::open)?
    }

    /// Ignores route changes that were made through the socket with this
    /// [`port`](crate::Netlink::port).
    pub fn ignore_routes_of(&mut self, port: u32) {
        self.own_port = Some(port);
    }

    /// Reads all pending events. Never blocks.
    pub fn drain(&mut self) -> Result<Changes> {
        let (mut changes, own_port) = (Changes::default(), self.own_port);
        drain(&self.socket, &mut self.buffer, |message| {
            changes.note(message, own_port);
        })?;
        Ok(changes)
    }
}

impl Changes {
    /// Adds a message; one that cannot be parsed (`None`) counts as lost.
    pub(crate) fn note(&mut self, message: Option<&[u8]>, own_port: Option<u32>) {
        let Some(message) = message.map(NetlinkBuffer::new) else {
            *self = Self::EVERYTHING;
            return;
        };
        match message.message_type() {
            libc::RTM_NEWLINK | libc::RTM_DELLINK => self.links = true,
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
            // Changes that the kernel makes on its own have port 0.
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.routes |= own_port != Some(message.port_number());
            }
            libc::RTM_NEWRULE | libc::RTM_DELRULE => self.routes = true,
            // The group also carries IPv6 neighbours and the tables of bridges.
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
                self.neighbours |= message.payload().first() == Some(&(libc::AF_INET as u8));
            }
            libc::RTM_NEWNETCONF => self.settings = true,
            libc::RTM_DELTFILTER | libc::RTM_DELQDISC => self.filters = true,
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

/// Opens a socket that receives the notifications of `groups`.
pub(crate) fn subscribe(protocol: isize, groups: &[u32]) -> Result<Socket> {
    let mut socket = at(Socket::new(protocol))?;
    at(socket.set_non_blocking(true))?;
    // Without CAP_NET_ADMIN, the buffer is limited by net.core.rmem_max.
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
        at(setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES).map_err(Into::into))?;
    }
    at(socket.bind(&SocketAddr::new(0, 0)))?;
    for group in groups {
        at(socket.add_membership(*group))?;
    }
    Ok(socket)
}

/// Passes all pending notifications to `note`, and `None` for those that were lost or cannot be parsed. Never blocks.
pub(crate) fn drain(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    mut note: impl FnMut(Option<&[u8]>),
) -> Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, libc::MSG_TRUNC) {
            Ok(len) => {
                if len > buffer.len() {
                    note(None);
                }
                for message in messages(buffer) {
                    note(message.ok());
                }
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return Ok(()),
                Some(Errno::ENOBUFS) => note(None),
                Some(Errno::EINTR) => {}
                _ => return at(Err(error)),
            },
        }
    }
}

fn at<T>(result: io::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Socket {
        attempt: "subscribe to network changes".into(),
        source,
    })
}
