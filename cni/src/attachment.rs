//! A container's interface in a network, and the names under which its kernel objects are found.
//!
//! There is no state file. The name of the host-side interface is computed from the attachment, so
//! every verb finds the link and its pins, and through the link the map entry. Garbage collection
//! must also recognise attachments that are *not* in its list: the name begins with a tag of the
//! network, and the link's alias holds the whole attachment. Name and alias disappear together
//! with the link: they cannot be stale, half written, or lost on a full disk.

use ipip_datapath::POD_ALIAS_START;
use ipip_netlink::Link;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Prefix of the name of every host-side interface.
const PREFIX: &str = "pod";
/// Hexadecimal digits for the network, followed by those for the attachment. With the prefix, a
/// name has 15 bytes, the longest that the kernel allows (`IFNAMSIZ`).
const NETWORK_DIGITS: usize = 4;
const ATTACHMENT_DIGITS: usize = 8;
/// The kernel allows 255 bytes (`IFALIASZ` without the final zero).
const ALIAS_BYTES: usize = 255;

/// One interface of one container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Attachment {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// The name of a network, from its configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network(pub String);

impl Network {
    /// Name of the host side of an attachment's veth. The same attachment always has the same name.
    pub fn host_ifname(&self, attachment: &Attachment) -> String {
        let own = digest(&[&self.0, &attachment.container_id, &attachment.ifname]);
        format!("{}{}", self.tag(), &own[..ATTACHMENT_DIGITS])
    }

    /// The alias of the host side: network, container and interface, for GC and for people.
    pub fn alias(&self, attachment: &Attachment) -> String {
        let Attachment {
            container_id,
            ifname,
        } = attachment;
        cut(format!("{}{container_id} {ifname}", self.alias_start()))
    }

    /// Whether an interface is the host side of one of this network's attachments.
    pub fn owns(&self, link: &Link) -> bool {
        self.may_own(&link.name)
            && match &link.alias {
                Some(alias) => alias.starts_with(&self.alias_start()),
                // An ADD that was killed before it wrote the alias.
                None => link.kind.as_deref() == Some("veth"),
            }
    }

    /// Whether the name could be one that [`Network::host_ifname`] gives.
    pub fn may_own(&self, host_ifname: &str) -> bool {
        host_ifname.len() == PREFIX.len() + NETWORK_DIGITS + ATTACHMENT_DIGITS
            && host_ifname.starts_with(&self.tag())
    }

    /// The attachment in a link's alias, if it is one of this network.
    pub fn attachment_of(&self, alias: &str) -> Option<Attachment> {
        let (container_id, ifname) = alias.strip_prefix(&self.alias_start())?.split_once(' ')?;
        Some(Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
        })
    }

    fn tag(&self) -> String {
        format!("{PREFIX}{}", &digest(&[&self.0])[..NETWORK_DIGITS])
    }

    fn alias_start(&self) -> String {
        cut(format!("{POD_ALIAS_START}{} ", self.0))
    }
}

/// Shortens a text to the length that the kernel allows. Names are ASCII, so no character is split.
fn cut(mut text: String) -> String {
    text.truncate(ALIAS_BYTES);
    text
}

/// SHA-256 in hexadecimal digits. A zero after each part keeps `("a", "bc")` and `("ab", "c")` apart.
fn digest(parts: &[&str]) -> String {
    let hash = parts
        .iter()
        .fold(Sha256::new(), |hash, part| {
            hash.chain_update(part).chain_update([0])
        })
        .finalize();
    hash.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    fn network(name: &str) -> Network {
        Network(name.into())
    }

    #[test]
    fn the_host_side_has_its_own_name_for_each_attachment_and_keeps_it() {
        let name = network("ipip").host_ifname(&attachment("a1", "eth0"));
        // If the scheme changes, the plugin no longer finds the interfaces of an older version.
        assert_eq!(name, "poda677360ddd7d");
        assert_eq!(name.len(), 15);
        let others = [
            ("ipip", "a1", "eth1"),
            ("ipip", "a2", "eth0"),
            ("other", "a1", "eth0"),
        ];
        for (other, id, ifname) in others {
            let other = network(other).host_ifname(&attachment(id, ifname));
            assert_ne!(name, other);
        }
        // The boundary between the ID and the interface is part of the digest.
        assert_ne!(
            network("ipip").host_ifname(&attachment("a", "beth0")),
            network("ipip").host_ifname(&attachment("ab", "eth0"))
        );
    }

    #[test]
    fn a_network_recognises_its_links_by_alias_or_without_one_by_name() {
        let (ours, other) = (network("ipip"), network("other"));
        let one = attachment("a1", "eth0");
        let mut link = Link {
            index: 1,
            name: ours.host_ifname(&one),
            kind: Some("veth".into()),
            ..Link::default()
        };
        assert!(ours.owns(&link) && !other.owns(&link));
        link.alias = Some(ours.alias(&one));
        assert!(ours.owns(&link));
        link.alias = Some(other.alias(&one));
        assert!(!ours.owns(&link), "two networks can have the same tag");
        link.alias = None;
        link.kind = None;
        assert!(!ours.owns(&link));
        link.name = "eth0".into();
        assert!(!ours.owns(&link));
    }

    #[test]
    fn an_alias_holds_the_attachment_and_is_not_too_long() {
        let (ours, one) = (network("ipip"), attachment("a1", "eth0"));
        assert_eq!(ours.alias(&one), "ipip ipip a1 eth0");
        assert_eq!(ours.attachment_of(&ours.alias(&one)), Some(one.clone()));
        assert_eq!(network("ip").attachment_of(&ours.alias(&one)), None);
        let long = network(&"n".repeat(300));
        assert_eq!(long.alias(&one).len(), ALIAS_BYTES);
        assert!(long.alias(&one).starts_with(&long.alias_start()));
    }
}
