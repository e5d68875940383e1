//! Generic netlink: families, whose numbers the kernel assigns at run time, and messages of plain attributes.

use crate::{
    Netlink, Result,
    attributes::{value, zero_terminated},
    socket::unexpected,
};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_TYPE_MASK, Nla, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    constants::{CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_CMD_GETFAMILY, GENL_ID_CTRL},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

/// Version of the controller, the family that knows the others.
const CONTROLLER_VERSION: u8 = 2;

/// A message of a generic netlink family.
#[derive(Clone, Debug)]
pub(crate) struct GenericMessage {
    /// Number of the family; 0 in answers.
    pub family: u16,
    /// Version of the family; 0 in answers.
    pub version: u8,
    /// The command.
    pub command: u8,
    /// The attributes.
    pub attributes: Vec<DefaultNla>,
}

/// A family, and a socket for its messages.
pub(crate) struct Family {
    pub netlink: Netlink<GenlMessage<GenericMessage>>,
    /// Its number, which the kernel assigns at run time.
    id: u16,
    version: u8,
}

impl Family {
    /// Opens a netlink socket in the calling thread's network namespace. `None` if the kernel does not have the family.
    pub fn open(name: &str, version: u8) -> Result<Option<Self>> {
        let attempt = || format!("find the generic netlink family {name}");
        let controller = Self {
            netlink: Netlink::open_protocol(NETLINK_GENERIC)?,
            id: GENL_ID_CTRL,
            version: CONTROLLER_VERSION,
        };
        let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, zero_terminated(name));
        let request = controller.message(CTRL_CMD_GETFAMILY, vec![name]);
        let mut netlink = controller.netlink;
        let answer = match netlink.get(attempt, request) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            answer => answer?,
        };
        match answer.payload.array(CTRL_ATTR_FAMILY_ID) {
            Some(id) => Ok(Some(Self {
                netlink,
                id: u16::from_ne_bytes(id),
                version,
            })),
            None => Err(unexpected(attempt, &answer)),
        }
    }

    /// A message of the family.
    pub fn message(&self, command: u8, attributes: Vec<DefaultNla>) -> GenlMessage<GenericMessage> {
        GenlMessage::from_payload(GenericMessage {
            family: self.id,
            version: self.version,
            command,
            attributes,
        })
    }
}

impl GenericMessage {
    /// The bytes of the first attribute of this kind.
    pub fn bytes(&self, kind: u16) -> Option<Vec<u8>> {
        let of_kind = |it: &&DefaultNla| it.kind() & NLA_TYPE_MASK == kind;
        self.attributes.iter().find(of_kind).map(value)
    }

    /// The same for an attribute of a fixed length.
    pub fn array<const LEN: usize>(&self, kind: u16) -> Option<[u8; LEN]> {
        self.bytes(kind)?.try_into().ok()
    }
}

impl GenlFamily for GenericMessage {
    fn family_name() -> &'static str {
        ""
    }

    fn family_id(&self) -> u16 {
        self.family
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        self.version
    }
}

impl Emitable for GenericMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for GenericMessage {
    fn parse_with_param(buffer: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|it| DefaultNla::parse(&it?));
        Ok(Self {
            family: 0,
            version: 0,
            command: header.cmd,
            attributes: attributes.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_by_its_name_and_an_unknown_one_is_none() {
        // The controller itself is the only family with a fixed number.
        let controller = Family::open("nlctrl", CONTROLLER_VERSION).unwrap();
        assert_eq!(controller.map(|it| it.id), Some(GENL_ID_CTRL));
        assert!(Family::open("no-such-family", 1).unwrap().is_none());
    }
}
