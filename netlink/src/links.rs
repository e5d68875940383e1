//! Network interfaces.

use crate::{NetNs, Netlink, Result, socket::unexpected};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
};
use nix::errno::Errno;
use std::{
    hash::{BuildHasher, RandomState},
    os::fd::{AsFd, AsRawFd},
};

/// A network interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as `ip -details link` names it; `None` for hardware and `lo`.
    pub kind: Option<String>,
    /// Its Ethernet address; zero if it has none.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Largest IPv4 GSO packet in bytes (`gso_ipv4_max_size`, Linux 6.3).
    pub gso_ipv4_max: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it resolves no neighbours.
    pub noarp: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether its frames have Ethernet headers.
    pub ethernet: bool,
    /// Index of the other end of a veth, or of the underlying interface. If
    /// [`Link::peer_netns_id`] is given, the index is one of that namespace.
    pub peer_index: Option<u32>,
    /// Namespace of the other end if it is not this one, as an ID that is valid in this namespace.
    pub peer_netns_id: Option<i32>,
    /// Index of the bridge or bond whose port it is.
    pub master: Option<u32>,
    /// Its alias: free text.
    pub alias: Option<String>,
}

/// Packets that the kernel dropped on an interface since the interface exists. They are those of all programs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DroppedPackets {
    /// Packets that were to be sent: the interface refused them, or they could not be segmented.
    pub tx: u64,
    /// Packets that were received.
    pub rx: u64,
}

/// A veth pair to be created.
#[derive(Clone, Copy, Debug, Default)]
pub struct Veth<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a str,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Namespace of the other end, if not the socket's.
    pub peer_ns: Option<&'a NetNs>,
    /// MTU of both ends in bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Largest IPv4 GSO and GRO packet of both ends in bytes; `None` for the kernel's default.
    pub gso_ipv4_max: Option<u32>,
    /// MAC of the end in the socket's namespace; `None` for a random one. The kernel is always given
    /// an explicit MAC, because udev replaces MACs that the kernel has chosen.
    pub mac: Option<[u8; 6]>,
    /// MAC of the other end; `None` for a random one.
    pub peer_mac: Option<[u8; 6]>,
}

/// Changes of an interface; a field that is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange<'a> {
    /// Whether it is administratively up.
    pub up: Option<bool>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Largest IPv4 GSO and GRO packet in bytes.
    pub gso_ipv4_max: Option<u32>,
    /// Whether it resolves no neighbours.
    pub noarp: Option<bool>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Its name.
    pub name: Option<&'a str>,
    /// The namespace to which it is moved.
    pub ns: Option<&'a NetNs>,
    /// Index of the bridge or bond to which it is added as a port; 0 removes it from its own.
    pub master: Option<u32>,
    /// Its alias, at most 255 bytes.
    pub alias: Option<&'a str>,
}

impl Netlink {
    /// Lists all interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut request = LinkMessage::default();
        request.attributes.push(without_statistics());
        let table = self.dump("list links", RouteNetlinkMessage::GetLink(request))?;
        Ok(table.iter().filter_map(link).collect())
    }

    /// The interface called `name`, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.into()), without_statistics()];
        let attempt = || format!("look up link {name}");
        match self.get(attempt, RouteNetlinkMessage::GetLink(request)) {
            Ok(answer) => match link(&answer) {
                Some(link) => Ok(Some(link)),
                None => Err(unexpected(attempt, &answer)),
            },
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the kernel dropped on the interface called `name`, if there is one.
    pub fn dropped_packets(&mut self, name: &str) -> Result<Option<DroppedPackets>> {
        let mut request = LinkMessage::default();
        request.attributes = vec![LinkAttribute::IfName(name.into())];
        let attempt = || format!("read the statistics of link {name}");
        let answer = match self.get(attempt, RouteNetlinkMessage::GetLink(request)) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => return Ok(None),
            answer => answer?,
        };
        let RouteNetlinkMessage::NewLink(link) = &answer else {
            return Err(unexpected(attempt, &answer));
        };
        let dropped = link.attributes.iter().find_map(|it| match it {
            LinkAttribute::Stats64(stats) => Some(DroppedPackets {
                tx: stats.tx_dropped,
                rx: stats.rx_dropped,
            }),
            _ => None,
        });
        dropped
            .ok_or_else(|| unexpected(attempt, &answer))
            .map(Some)
    }

    /// Creates a veth pair. The other end is created directly in its namespace, and its name needs
    /// to be free only there.
    pub fn add_veth(&mut self, veth: &Veth) -> Result<()> {
        let end = |name: &str, mac: Option<[u8; 6]>| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.into()));
            message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
            message.attributes.extend(sizes(veth.gso_ipv4_max));
            let mac = mac.unwrap_or_else(random_mac);
            message.attributes.push(LinkAttribute::Address(mac.into()));
            message
        };
        let mut peer = end(veth.peer_name, veth.peer_mac);
        peer.attributes.extend(veth.peer_ns.map(namespace));
        let mut request = end(veth.name, veth.mac);
        request.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.change(
            || match veth.peer_ns {
                Some(ns) => format!(
                    "create veth {} with peer {} in {}",
                    veth.name,
                    veth.peer_name,
                    ns.path().display()
                ),
                None => format!("create veth {} with peer {}", veth.name, veth.peer_name),
            },
            RouteNetlinkMessage::NewLink(request),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    /// Changes the interface `index`.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        for (flag, wanted) in [(LinkFlags::Up, change.up), (LinkFlags::Noarp, change.noarp)] {
            if let Some(wanted) = wanted {
                request.header.change_mask |= flag;
                request.header.flags.set(flag, wanted);
            }
        }
        let attributes = [
            change.mtu.map(LinkAttribute::Mtu),
            change.mac.map(|mac| LinkAttribute::Address(mac.into())),
            change.name.map(|name| LinkAttribute::IfName(name.into())),
            change.ns.map(namespace),
            change.master.map(LinkAttribute::Controller),
            change
                .alias
                .map(|alias| LinkAttribute::IfAlias(alias.into())),
        ];
        let sizes = sizes(change.gso_ipv4_max);
        request.attributes = attributes.into_iter().flatten().chain(sizes).collect();
        self.change(
            || format!("change link {index}"),
            RouteNetlinkMessage::SetLink(request),
            0,
        )
    }

    /// Deletes the interface `index`, and with a veth its other end.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.change(
            || format!("delete link {index}"),
            RouteNetlinkMessage::DelLink(request),
            0,
        )
    }
}

/// Whether the kernel accepts `name` as the name of an interface (`dev_valid_name`).
pub fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace())
}

/// A random unicast MAC with the "locally administered" bit (IEEE 802, section 8.4).
fn random_mac() -> [u8; 6] {
    // The standard library has no other source of randomness; every `RandomState` has its own keys, from a
    // random seed.
    let bits = RandomState::new().hash_one(()).to_ne_bytes();
    let [a, b, c, d, e, f, ..] = bits;
    [a & 0xfc | 0x02, b, c, d, e, f]
}

fn sizes(gso_ipv4_max: Option<u32>) -> impl Iterator<Item = LinkAttribute> {
    let both = |size| {
        [
            LinkAttribute::GsoIpv4MaxSize(size),
            LinkAttribute::GroIpv4MaxSize(size),
        ]
    };
    gso_ipv4_max.into_iter().flat_map(both)
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

fn namespace(ns: &NetNs) -> LinkAttribute {
    LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd())
}

pub(crate) fn link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        mac: [0; 6],
        mtu: 0,
        gso_ipv4_max: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        noarp: flags.contains(LinkFlags::Noarp),
        loopback: flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        peer_index: None,
        peer_netns_id: None,
        master: None,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac[..].try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::GsoIpv4MaxSize(size) => link.gso_ipv4_max = Some(*size),
            LinkAttribute::Link(index) => link.peer_index = Some(*index),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns_id = Some(*id),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_refuses_are_no_link_names() {
        for good in ["eth0", "eth0.100", "a"] {
            assert!(is_link_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "sixteen-bytes-xx",
        ] {
            assert!(!is_link_name(bad), "{bad}");
        }
    }
}
