//! `ipip0`, the host's tunnel interface. Packets that the host routes into it go to peers; packets from peers to
//! this node come out of it.
//!
//! It is one end of a veth pair, because every kernel has veth. No packet reaches the other end: `from_host` on
//! the egress of `ipip0` redirects or drops every packet.

use crate::host::facts::Ipip0;
use ipip_abi::Mac;
use ipip_netlink::{Link, LinkChange, Netlink, Veth, set_sysctl, sysctl};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The interface's name.
pub const NAME: &str = "ipip0";
/// The unused end of the pair. It must be up, otherwise `ipip0` has no carrier.
pub(crate) const FAR_END: &str = "ipip0-far";

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

/// Creates the interface, or corrects its settings. [`ensure_address`] sets its address. Returns the interface, and
/// the settings that the kernel refused.
///
/// # Errors
/// There is no interface.
pub fn ensure(netlink: &mut Netlink, mtu: u16) -> Result<(Ipip0, Vec<Error>), Error> {
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
    // Set before the interface is up, so that not even a router solicitation leaves it.
    let mut settings = [NAME, FAR_END]
        .map(|end| (format!("net.ipv6.conf.{end}.disable_ipv6"), "1"))
        .to_vec();
    // Loose mode (RFC 3704): a node of the same realm sends to pods through the tunnel with its InternalIP as
    // the source, but the route back to this InternalIP leads through the uplink.
    settings.push((format!("net.ipv4.conf.{NAME}.rp_filter"), "2"));
    // A packet that leaves the tunnel and enters it again (a Service) has no better route to be redirected to.
    settings.push((format!("net.ipv4.conf.{NAME}.send_redirects"), "0"));
    let set = |(key, value): &(String, &str)| ensure_sysctl(key, value).err();
    let mut failed: Vec<Error> = settings.iter().filter_map(set).collect();
    failed.extend(ensure_end(netlink, &link, mtu).err());
    if let Some(far_end) = netlink.link(FAR_END)? {
        failed.extend(ensure_end(netlink, &far_end, mtu).err());
    }
    let ipip0 = Ipip0 {
        index: link.index,
        mac: Mac(link.mac),
    };
    Ok((ipip0, failed))
}

/// Gives the interface this node's InternalIP and no other address. SNAT on the way into the tunnel (a Service)
/// uses the interface's address, and peers accept only this one.
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

/// Removes the interface and with it every route through it. An absent interface is no error.
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
        // Nothing on the other end answers ARP.
        noarp: Some(true),
        mtu: Some(mtu.into()),
        ..LinkChange::default()
    };
    Ok(netlink.change_link(end.index, &change)?)
}

fn ensure_sysctl(key: &str, value: &str) -> Result<(), Error> {
    match sysctl(key) {
        Ok(found) if found == value => Ok(()),
        // The kernel has no IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        _ => Ok(set_sysctl(key, value)?),
    }
}
