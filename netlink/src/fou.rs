//! Foo-over-UDP (FOU) sockets: kernel sockets that receive IPv4 packets inside UDP.
//!
//! GRO merges the segments inside UDP datagrams only on ports with a socket that states their content.
//! Names in backquotes are those of linux/fou.h.

use crate::{NetNs, Netlink, Result, socket::unexpected};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, Nla, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::{errno::Errno, libc};
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
pub struct Fou {
    netlink: Netlink<GenlMessage<Message>>,
    /// The number of the family, which the kernel assigns at run time.
    family: u16,
}

/// A message of the generic netlink family `fou`.
#[derive(Clone, Debug)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Fou {
    /// Opens a netlink socket in the calling thread's network namespace. `None` if the kernel has no
    /// foo-over-UDP, or if its module `fou` is not loaded: the kernel does not load it on demand.
    pub fn open() -> Result<Option<Self>> {
        let Some(family) = family_id(FAMILY)? else {
            return Ok(None);
        };
        let netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
        Ok(Some(Self { netlink, family }))
    }

    /// Opens a netlink socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Option<Self>> {
        ns.run(Self::open)?
    }

    /// Lists the sockets for IPv4 inside UDP. The address of a socket that is not bound to one is
    /// unspecified.
    pub fn sockets(&mut self) -> Result<Vec<SocketAddrV4>> {
        let request = self.message(GET, Vec::new());
        let table = self.netlink.dump("list FOU sockets", request)?;
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
        let request = self.message(command, attributes);
        let attempt = || format!("{verb} the FOU socket {socket}");
        self.netlink.change(attempt, request, NLM_F_ACK)
    }

    fn message(&self, command: u8, attributes: Vec<DefaultNla>) -> GenlMessage<Message> {
        GenlMessage::from_payload(Message {
            family: self.family,
            command,
            attributes,
        })
    }
}

/// The number of a generic netlink family; `None` if the kernel does not have it.
fn family_id(name: &str) -> Result<Option<u16>> {
    let attempt = || format!("find the generic netlink family {name}");
    let mut netlink = Netlink::<GenlMessage<GenlCtrl>>::open_protocol(NETLINK_GENERIC)?;
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.into())],
    });
    let answer = match netlink.get(attempt, request) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
        answer => answer?,
    };
    let id = answer.payload.nlas.iter().find_map(|it| match it {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    });
    id.ok_or_else(|| unexpected(attempt, &answer)).map(Some)
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

fn socket(message: &Message) -> Option<SocketAddrV4> {
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

impl Message {
    fn bytes(&self, kind: u16) -> Option<Vec<u8>> {
        let attribute = self.attributes.iter().find(|it| it.kind() == kind)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        Some(value)
    }

    fn array<const LEN: usize>(&self, kind: u16) -> Option<[u8; LEN]> {
        self.bytes(kind)?.try_into().ok()
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn family_id(&self) -> u16 {
        self.family
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|it| DefaultNla::parse(&it?));
        Ok(Self {
            family: 0,
            command: header.cmd,
            attributes: attributes.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_generic::constants::GENL_ID_CTRL;

    #[test]
    fn a_family_is_found_by_its_name_and_an_unknown_one_is_none() {
        // The controller itself is the only family with a fixed number.
        assert_eq!(family_id("nlctrl").unwrap(), Some(GENL_ID_CTRL));
        assert_eq!(family_id("no-such-family").unwrap(), None);
    }
}
