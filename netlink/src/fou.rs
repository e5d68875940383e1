//! Foo-over-UDP (FOU) sockets: kernel sockets that receive IPv4 packets inside UDP.
//!
//! GRO merges the segments inside UDP datagrams only on ports with a socket that states their content.
//! Names in backquotes are those of linux/fou.h.

use crate::{
    NetNs, Result,
    generic::{Family, GenericMessage},
};
use netlink_packet_core::{DefaultNla, NLM_F_ACK};
use nix::libc;
use std::net::{Ipv4Addr, SocketAddrV4};

/// `FOU_GENL_NAME`.
const FAMILY: &str = "fou";
/// `FOU_GENL_VERSION`.
const VERSION: u8 = 1;
/// `FOU_CMD_ADD`.
const ADD: u8 = 1;
/// `FOU_CMD_DEL`.
const DELETE: u8 = 2;
/// `FOU_CMD_GET`.
const GET: u8 = 3;
/// `FOU_ATTR_PORT`, in network byte order.
const PORT: u16 = 1;
/// `FOU_ATTR_AF`.
const ADDRESS_FAMILY: u16 = 2;
/// `FOU_ATTR_IPPROTO`.
const PROTOCOL: u16 = 3;
/// `FOU_ATTR_TYPE`.
const TYPE: u16 = 4;
/// `FOU_ENCAP_DIRECT`: the inner packet follows the UDP header immediately.
const DIRECT: u8 = 1;
/// `FOU_ATTR_LOCAL_V4`.
const LOCAL: u16 = 6;

/// Lists, opens and closes the FOU sockets of one network namespace.
pub struct Fou(Family);

impl Fou {
    /// Opens a netlink socket in the calling thread's network namespace. `None` if the kernel has no
    /// foo-over-UDP, or if its module `fou` is not loaded: the kernel does not load it on demand.
    pub fn open() -> Result<Option<Self>> {
        Ok(Family::open(FAMILY, VERSION)?.map(Self))
    }

    /// Opens a netlink socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Option<Self>> {
        ns.run(Self::open)?
    }

    /// Lists the sockets for IPv4 inside UDP. The address of a socket that is not bound to one is
    /// unspecified.
    pub fn sockets(&mut self) -> Result<Vec<SocketAddrV4>> {
        let request = self.0.message(GET, Vec::new());
        let table = self.0.netlink.dump("list FOU sockets", request)?;
        Ok(table.iter().filter_map(|it| socket(&it.payload)).collect())
    }

    /// Opens a socket.
    pub fn add(&mut self, socket: SocketAddrV4) -> Result<()> {
        let mut attributes = named(socket);
        attributes.push(DefaultNla::new(PROTOCOL, vec![libc::IPPROTO_IPIP as u8]));
        attributes.push(DefaultNla::new(TYPE, vec![DIRECT]));
        self.change("open", socket, ADD, attributes)
    }

    /// Closes a socket.
    pub fn delete(&mut self, socket: SocketAddrV4) -> Result<()> {
        self.change("close", socket, DELETE, named(socket))
    }

    fn change(
        &mut self,
        verb: &str,
        socket: SocketAddrV4,
        command: u8,
        attributes: Vec<DefaultNla>,
    ) -> Result<()> {
        let request = self.0.message(command, attributes);
        let attempt = || format!("{verb} the FOU socket {socket}");
        self.0.netlink.change(attempt, request, NLM_F_ACK)
    }
}

/// The attributes that identify a socket.
fn named(socket: SocketAddrV4) -> Vec<DefaultNla> {
    let mut attributes = vec![
        DefaultNla::new(PORT, socket.port().to_be_bytes().into()),
        DefaultNla::new(ADDRESS_FAMILY, vec![libc::AF_INET as u8]),
    ];
    if !socket.ip().is_unspecified() {
        attributes.push(DefaultNla::new(LOCAL, socket.ip().octets().into()));
    }
    attributes
}

pub(crate) fn socket(message: &GenericMessage) -> Option<SocketAddrV4> {
    let has = |kind, value| message.array(kind) == Some([value]);
    let is_for_ipv4 = has(ADDRESS_FAMILY, libc::AF_INET as u8)
        && has(PROTOCOL, libc::IPPROTO_IPIP as u8)
        && has(TYPE, DIRECT);
    let local = message
        .array(LOCAL)
        .map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from_octets);
    let port = u16::from_be_bytes(message.array(PORT)?);
    is_for_ipv4.then_some(SocketAddrV4::new(local, port))
}
