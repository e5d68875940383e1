//! `ipip0`, the host's tunnel interface: what the host routes into it goes to peers, what peers
//! send to this node comes out of it.
//!
//! It is one end of a veth pair, which every kernel has. Nothing ever reaches the other end: the
//! program on its egress sends each packet elsewhere or drops it.

use crate::host::facts::Ipip0;
use ipip_abi::Mac;
use ipip_netlink::{Link, LinkChange, Netlink, Veth, set_sysctl, sysctl};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// Its name.
pub const NAME: &str = "ipip0";
/// The end that nothing uses; without it there is no carrier.
const FAR_END: &str = "ipip0-far";

/// Why there is no `ipip0`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// An interface of this name is somebody else's.
    #[error(
        "interface {NAME} is not ours: its kind is {0}, not veth; remedy: rename or remove it (`ip link delete {NAME}`)"
    )]
    Foreign(String),
    /// It went as soon as it was made.
    #[error("interface {NAME} vanished while it was set up")]
    Vanished,
}

/// Makes it, or mends what is not right of it, but for its address.
pub fn ensure(netlink: &mut Netlink, mtu: u16) -> Result<Ipip0, Error> {
    if netlink.link(NAME)?.is_none() {
        netlink.add_veth(&Veth {
            name: NAME,
            peer_name: FAR_END,
            mtu: Some(mtu.into()),
            ..Veth::default()
        })?;
    }
    let link = netlink.link(NAME)?.ok_or(Error::Vanished)?;
    if link.kind.as_deref() != Some("veth") {
        return Err(Error::Foreign(link.kind.unwrap_or("hardware".into())));
    }
    // Before it is up, so that not even a router solicitation goes out.
    for end in [NAME, FAR_END] {
        ensure_sysctl(&format!("net.ipv6.conf.{end}.disable_ipv6"), "1")?;
    }
    // Loose (RFC 3704): a node of the same realm is a neighbour of this host, yet sends to pods
    // through the tunnel, with its own address; its way back is another interface.
    ensure_sysctl(&format!("net.ipv4.conf.{NAME}.rp_filter"), "2")?;
    // A packet that comes out and goes in again (a Service) has no better way.
    ensure_sysctl(&format!("net.ipv4.conf.{NAME}.send_redirects"), "0")?;
    ensure_end(netlink, &link, mtu)?;
    if let Some(far_end) = netlink.link(FAR_END)? {
        ensure_end(netlink, &far_end, mtu)?;
    }
    Ok(Ipip0 {
        index: link.index,
        mac: Mac(link.mac),
    })
}

/// Gives it this node's InternalIP and no other address: what the host masquerades on its way into
/// the tunnel (a Service) gets the address of the interface, and peers take no other.
pub fn ensure_address(
    netlink: &mut Netlink,
    ipip0: Ipip0,
    internal_ip: Option<Ipv4Addr>,
) -> Result<(), Error> {
    let wanted = internal_ip.map(Ipv4Network::from);
    let all = netlink.addresses()?.into_iter();
    let (right, wrong): (Vec<_>, Vec<_>) = all
        .filter(|it| it.index == ipip0.index)
        .partition(|it| Some(it.network) == wanted);
    for other in wrong {
        netlink.delete_address(ipip0.index, other.network)?;
    }
    match wanted {
        Some(wanted) if right.is_empty() => Ok(netlink.add_address(ipip0.index, wanted)?),
        _ => Ok(()),
    }
}

/// Removes it, and with it every route through it. Fine if it is not there.
pub fn remove(netlink: &mut Netlink) -> Result<(), Error> {
    match netlink.link(NAME)? {
        Some(link) if link.kind.as_deref() == Some("veth") => Ok(netlink.delete_link(link.index)?),
        _ => Ok(()),
    }
}

fn ensure_end(netlink: &mut Netlink, end: &Link, mtu: u16) -> Result<(), Error> {
    if end.up && end.noarp && end.mtu == u32::from(mtu) {
        return Ok(());
    }
    let change = LinkChange {
        up: Some(true),
        // The host finds no neighbour there, and needs none.
        noarp: Some(true),
        mtu: Some(mtu.into()),
        ..LinkChange::default()
    };
    Ok(netlink.change_link(end.index, &change)?)
}

fn ensure_sysctl(key: &str, value: &str) -> Result<(), Error> {
    match sysctl(key) {
        Ok(found) if found == value => Ok(()),
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        _ => Ok(set_sysctl(key, value)?),
    }
}
