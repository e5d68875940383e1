//! Attributes of netlink messages.

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};

/// The bytes of an attribute.
pub(crate) fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

/// The text of the first attribute of this kind.
pub(crate) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    NlasIterator::new(attributes)
        .filter_map(|attribute| attribute.ok())
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| as_text(attribute.value()))
}

/// The text in the bytes of an attribute.
pub(crate) fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_string()
}

/// The bytes of an attribute with a text.
pub(crate) fn zero_terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
