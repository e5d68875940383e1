//! `ipip0`, the host's tunnel interface. Packets that the host routes into it go to peers; packets from peers to
//! this node come out of it.
//!
//! It is one end of a veth pair, because every kernel has veth. `from_host` on the egress of `ipip0` redirects or drops
//! nearly every packet. Only large packets that it cannot encapsulate whole reach the other end: as segments, because
//! `ipip0` has no segmentation offloads. `from_far_end` encapsulates them there.

use crate::host::facts::Ipip0;
use ipip_abi::Mac;
use ipip_netlink::{Features, Link, LinkChange, Netlink, Veth, is_segmentation_offload};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The interface's name.
pub const NAME: &str = "ipip0";
/// The other end of the pair.
pub const FAR_END: &str = "ipip0-far";

/// `ipip0` could not be created or set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// An interface of another kind has this name.
    #[error(
        "interface {NAME} is not ours: its kind is {0}, not veth; remedy: rename or remove it (`ip link delete {NAME}`)"
    )]
    Foreign(String),
    /// The interface was deleted during setup.
    #[error("interface {NAME} was deleted during its setup")]
    Vanished,
}

/// Creates the pair if it does not exist, and gives both ends their names. Returns a sentence for each change.
/// [`bring_up`] does the rest, once the kernel settings of both ends are right.
///
/// # Errors
/// There is no such pair.
pub fn create(netlink: &mut Netlink, mtu: u16) -> Result<Vec<String>, Error> {
    let (ipip0, far_end) = (netlink.link(NAME)?, netlink.link(FAR_END)?);
    if let Some(link) = &ipip0
        && link.kind.as_deref() != Some("veth")
    {
        return Err(Error::Foreign(
            link.kind.clone().unwrap_or("hardware".into()),
        ));
    }
    let mut changes = Vec::new();
    if ipip0.is_some() && far_end.is_some() {
        return Ok(changes);
    }
    let links = netlink.links()?;
    let other_end = |end: &Link| {
        let index = end.peer_index.filter(|_| end.peer_netns_id.is_none());
        index.and_then(|index| links.iter().find(|link| link.index == index))
    };
    let present = ipip0.map(|end| (end, FAR_END));
    if let Some((present, name)) = present.or(far_end.map(|end| (end, NAME))) {
        if let Some(renamed) = other_end(&present) {
            rename(netlink, renamed, name)?;
            changes.push(format!("the name of {name}, which was {}", renamed.name));
            return Ok(changes);
        }
        // The other end was moved to another namespace.
        netlink.delete_link(present.index)?;
    }
    netlink.add_veth(&Veth {
        name: NAME,
        peer_name: FAR_END,
        mtu: Some(mtu.into()),
        ..Veth::default()
    })?;
    changes.push(format!("the interface {NAME}, which was missing"));
    Ok(changes)
}

/// The interface.
///
/// # Errors
/// There is none.
pub fn get(netlink: &mut Netlink) -> Result<Ipip0, Error> {
    let link = netlink.link(NAME)?.ok_or(Error::Vanished)?;
    Ok(Ipip0 {
        index: link.index,
        mac: Mac(link.mac),
    })
}

/// Sets both ends up. Returns a sentence for each change. [`ensure_address`] sets the address.
///
/// # Errors
/// The kernel refused a change.
pub fn bring_up(netlink: &mut Netlink, mtu: u16) -> Result<Vec<String>, Error> {
    let mut changes = Vec::new();
    for end in [NAME, FAR_END] {
        if let Some(link) = netlink.link(end)? {
            changes.extend(ensure_end(netlink, &link, mtu)?);
            if end == NAME {
                changes.extend(segment_in_software(&link)?);
            }
        }
    }
    Ok(changes)
}

/// Turns off the segmentation offloads. Sockets of the host still send large packets (GSO) into the tunnel.
fn segment_in_software(ipip0: &Link) -> Result<Option<String>, Error> {
    // The kernel has ethtool netlink unless it was configured without it (`CONFIG_ETHTOOL_NETLINK`).
    let Some(mut features) = Features::open()? else {
        return Ok(None);
    };
    let turned_off = features.turn_off(ipip0.index, is_segmentation_offload)?;
    let what = || format!("{NAME} without the offloads {}", turned_off.join(", "));
    Ok((!turned_off.is_empty()).then(what))
}

/// Gives the interface this node's InternalIP and no other address. SNAT on the way into the tunnel (a Service)
/// uses the interface's address, and peers accept only this one. Returns a sentence for each change.
pub fn ensure_address(
    netlink: &mut Netlink,
    ipip0: Ipip0,
    internal_ip: Option<Ipv4Addr>,
) -> Result<Vec<String>, Error> {
    let mut changes = Vec::new();
    let wanted = internal_ip.map(Ipv4Network::from);
    let all = netlink.addresses()?.into_iter();
    let (right, wrong): (Vec<_>, Vec<_>) = all
        .filter(|it| it.index == ipip0.index)
        .partition(|it| Some(it.network) == wanted);
    for other in wrong {
        netlink.delete_address(ipip0.index, other.network)?;
        changes.push(format!("{NAME} without the address {}", other.network));
    }
    if let Some(wanted) = wanted.filter(|_| right.is_empty()) {
        netlink.add_address(ipip0.index, wanted)?;
        changes.push(format!("the address {wanted} of {NAME}, which was missing"));
    }
    Ok(changes)
}

/// Removes the interface and with it every route through it. An absent interface is no error.
pub fn remove(netlink: &mut Netlink) -> Result<(), Error> {
    match netlink.link(NAME)? {
        Some(link) if link.kind.as_deref() == Some("veth") => Ok(netlink.delete_link(link.index)?),
        _ => Ok(()),
    }
}

/// Older kernels rename only interfaces that are down.
fn rename(netlink: &mut Netlink, link: &Link, name: &str) -> Result<(), Error> {
    let down = LinkChange {
        up: Some(false),
        ..LinkChange::default()
    };
    netlink.change_link(link.index, &down)?;
    let renamed = LinkChange {
        name: Some(name),
        ..LinkChange::default()
    };
    Ok(netlink.change_link(link.index, &renamed)?)
}

fn ensure_end(netlink: &mut Netlink, end: &Link, mtu: u16) -> Result<Vec<String>, Error> {
    let wrong = [
        (!end.up, "was down".to_string()),
        (!end.noarp, "resolved neighbours".into()),
        (
            end.mtu != u32::from(mtu),
            format!("had an MTU of {}", end.mtu),
        ),
    ];
    let wrong = wrong.into_iter().filter(|(is_wrong, _)| *is_wrong);
    let changes: Vec<String> = wrong
        .map(|(_, what)| format!("the interface {}, which {what}", end.name))
        .collect();
    if !changes.is_empty() {
        let change = LinkChange {
            up: Some(true),
            // Nothing on the other end answers ARP.
            noarp: Some(true),
            mtu: Some(mtu.into()),
            ..LinkChange::default()
        };
        netlink.change_link(end.index, &change)?;
    }
    Ok(changes)
}
