//! Generic netlink: families, whose numbers the kernel assigns at run time, and messages of plain attributes.

use crate::{Netlink, Result, socket::unexpected};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_TYPE_MASK, Nla, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::errno::Errno;

/// A message of a generic netlink family.
#[derive(Clone, Debug)]
pub(crate) struct GenericMessage {
    /// Number of the family ([`family_id`]); 0 in answers.
    pub family: u16,
    /// Version of the family; 0 in answers.
    pub version: u8,
    /// The command.
    pub command: u8,
    /// The attributes.
    pub attributes: Vec<DefaultNla>,
}

/// The number of a generic netlink family; `None` if the kernel does not have it.
pub(crate) fn family_id(name: &str) -> Result<Option<u16>> {
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

impl GenericMessage {
    /// The bytes of the first attribute of this kind.
    pub fn bytes(&self, kind: u16) -> Option<Vec<u8>> {
        let of_kind = |it: &&DefaultNla| it.kind() & NLA_TYPE_MASK == kind;
        let attribute = self.attributes.iter().find(of_kind)?;
        let mut value = vec![0; attribute.value_len()];
        attribute.emit_value(&mut value);
        Some(value)
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
    use netlink_packet_generic::constants::GENL_ID_CTRL;

    #[test]
    fn a_family_is_found_by_its_name_and_an_unknown_one_is_none() {
        // The controller itself is the only family with a fixed number.
        assert_eq!(family_id("nlctrl").unwrap(), Some(GENL_ID_CTRL));
        assert_eq!(family_id("no-such-family").unwrap(), None);
    }
}
