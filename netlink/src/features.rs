//! Features of interfaces, as `ethtool -k` shows them. Names in backquotes are those of
//! linux/ethtool_netlink.h.

use crate::{
    NetNs, Result,
    attributes::{text, zero_terminated},
    generic::{Family, GenericMessage},
};
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_ACK, NlasIterator};

/// `ETHTOOL_GENL_NAME`.
const FAMILY: &str = "ethtool";
/// `ETHTOOL_GENL_VERSION`.
const VERSION: u8 = 1;
/// `ETHTOOL_MSG_FEATURES_GET`.
const GET: u8 = 11;
/// `ETHTOOL_MSG_FEATURES_SET`.
const SET: u8 = 12;
/// `ETHTOOL_A_FEATURES_HEADER`.
const HEADER: u16 = 1;
/// `ETHTOOL_A_HEADER_DEV_INDEX`.
const DEV_INDEX: u16 = 1;
/// `ETHTOOL_A_FEATURES_HW`: those that can be changed.
const CHANGEABLE: u16 = 2;
/// `ETHTOOL_A_FEATURES_WANTED`.
const WANTED: u16 = 3;
/// `ETHTOOL_A_FEATURES_ACTIVE`.
const ACTIVE: u16 = 4;
/// `ETHTOOL_A_BITSET_BITS`.
const BITS: u16 = 3;
/// `ETHTOOL_A_BITSET_BITS_BIT`.
const BIT: u16 = 1;
/// `ETHTOOL_A_BITSET_BIT_NAME`.
const BIT_NAME: u16 = 2;
/// `ETHTOOL_A_BITSET_BIT_VALUE`.
const BIT_VALUE: u16 = 3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Reads and changes the features of the interfaces of one network namespace.
pub struct Features(Family);

/// Whether the feature of this name lets an interface take packets that are larger than its MTU, which it segments
/// itself. The kernel segments packets of all other kinds before the interface gets them.
pub fn is_segmentation_offload(name: &str) -> bool {
    // `tx-generic-segmentation` lets the kernel's sockets build such packets, whatever the interface takes.
    let is_named_so = name.starts_with("tx-") && name.ends_with("-segmentation");
    name == "tx-gso-list" || (is_named_so && name != "tx-generic-segmentation")
}

/// Whether the feature is a [segmentation offload](is_segmentation_offload) of packets other than plain TCP and UDP: of
/// tunnels, SCTP, IPsec and others.
pub fn is_uncommon_segmentation_offload(name: &str) -> bool {
    let is_common = name.starts_with("tx-tcp") || name == "tx-udp-segmentation";
    is_segmentation_offload(name) && !is_common
}

impl Features {
    /// Opens a netlink socket in the calling thread's network namespace. `None` if the kernel has no ethtool netlink
    /// (`CONFIG_ETHTOOL_NETLINK`).
    pub fn open() -> Result<Option<Self>> {
        Ok(Family::open(FAMILY, VERSION)?.map(Self))
    }

    /// Opens a netlink socket in `ns`; the calling thread stays in its own namespace.
    pub fn open_in(ns: &NetNs) -> Result<Option<Self>> {
        ns.run(Self::open)?
    }

    /// Names of the features of the interface `index` that are on and can be turned off.
    pub fn active(&mut self, index: u32) -> Result<Vec<String>> {
        let answer = self.read(index)?;
        let changeable = names(&answer, CHANGEABLE);
        let mut active = names(&answer, ACTIVE);
        active.retain(|name| changeable.contains(name));
        Ok(active)
    }

    /// Names of the features of the interface `index` that can be turned on and off.
    pub fn changeable(&mut self, index: u32) -> Result<Vec<String>> {
        Ok(names(&self.read(index)?, CHANGEABLE))
    }

    /// Turns features of the interface `index` on or off. The kernel refuses names that it does not know.
    pub fn set<N: AsRef<str>>(&mut self, index: u32, features: &[N], on: bool) -> Result<()> {
        let bits: Vec<DefaultNla> = features
            .iter()
            .map(|name| {
                let name = zero_terminated(name.as_ref());
                let mut bit = vec![DefaultNla::new(BIT_NAME, name)];
                // A flag: present or absent.
                bit.extend(on.then(|| DefaultNla::new(BIT_VALUE, Vec::new())));
                nested(BIT, &bit)
            })
            .collect();
        let wanted = nested(WANTED, &[nested(BITS, &bits)]);
        let request = self.0.message(SET, vec![header(index), wanted]);
        let attempt = || format!("set features of link {index}");
        self.0.netlink.change(attempt, request, NLM_F_ACK)
    }

    /// Turns off each feature of the interface `index` that `is_unwanted` selects by its name. Returns the names.
    pub fn turn_off(
        &mut self,
        index: u32,
        is_unwanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut unwanted = self.active(index)?;
        unwanted.retain(|name| is_unwanted(name));
        if !unwanted.is_empty() {
            self.set(index, &unwanted, false)?;
        }
        Ok(unwanted)
    }

    fn read(&mut self, index: u32) -> Result<GenericMessage> {
        let attempt = || format!("read the features of link {index}");
        let request = self.0.message(GET, vec![header(index)]);
        Ok(self.0.netlink.get(attempt, request)?.payload)
    }
}

/// The interface that a request is about.
fn header(index: u32) -> DefaultNla {
    let index = DefaultNla::new(DEV_INDEX, index.to_ne_bytes().into());
    nested(HEADER, &[index])
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NESTED, value)
}

/// Names of the bits of a bitset.
pub(crate) fn names(answer: &GenericMessage, set: u16) -> Vec<String> {
    let set = answer.bytes(set).unwrap_or_default();
    let bits = values(&set, BITS).next().unwrap_or_default();
    values(&bits, BIT)
        .filter_map(|bit| text(&bit, BIT_NAME))
        .collect()
}

/// Values of the attributes of this kind.
fn values(attributes: &[u8], kind: u16) -> impl Iterator<Item = Vec<u8>> {
    NlasIterator::new(attributes)
        .filter_map(|it| it.ok())
        .filter(move |it| it.kind() == kind)
        .map(|it| it.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_offloads_are_told_apart_by_their_names() {
        for (name, is_offload, is_uncommon) in [
            ("tx-tcp-segmentation", true, false),
            ("tx-tcp-mangleid-segmentation", true, false),
            ("tx-udp-segmentation", true, false),
            ("tx-udp_tnl-csum-segmentation", true, true),
            ("tx-gre-segmentation", true, true),
            ("tx-sctp-segmentation", true, true),
            ("tx-gso-list", true, true),
            ("tx-generic-segmentation", false, false),
            ("tx-checksum-ip-generic", false, false),
            ("rx-gro", false, false),
        ] {
            assert_eq!(is_segmentation_offload(name), is_offload, "{name}");
            assert_eq!(
                is_uncommon_segmentation_offload(name),
                is_uncommon,
                "{name}"
            );
        }
    }
}
