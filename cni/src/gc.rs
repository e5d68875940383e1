//! GC: removes every attachment of this network that is not in the runtime's list.

use crate::{
    attachment::{Attachment, Network},
    error::Error,
    ipam::Ipam,
    leases::Leases,
    lock::Lock,
    pod_entry::PodEntries,
    pod_link,
    request::Request,
};
use ipip_datapath::Pins;
use ipip_netlink::{Link, Netlink};
use std::collections::HashSet;

/// Removes all attachments that are not to be kept.
///
/// # Errors
/// Every step that failed; all others were completed.
pub fn gc(request: &Request) -> Result<(), Error> {
    request.version.expect_newest("GC")?;
    let conf = &request.conf;
    let valid = conf.valid.as_ref().ok_or(Error::NoValidAttachments)?;
    // While this lock is held, no ADD is in progress. An attachment that is not in the list is
    // therefore garbage, and not a pod that is being created.
    let _lock = Lock::of_all(&conf.run_dir)?;
    let mut errors = Vec::new();
    errors.extend(Leases::adopt(conf).err());
    let stale = match Netlink::open() {
        Ok(mut host) => {
            remove_from_kernel(&conf.network, &conf.pins, valid, &mut host, &mut errors)
        }
        Err(error) => {
            errors.push(error.into());
            Vec::new()
        }
    };
    errors.extend(release_addresses(request, valid, stale));
    Error::all(errors)
}

/// Removes links, pod entries and pins, and returns the attachments whose links were to be removed: their addresses
/// are released even if a step failed.
fn remove_from_kernel(
    network: &Network,
    pins: &Pins,
    valid: &[Attachment],
    host: &mut Netlink,
    errors: &mut Vec<Error>,
) -> Vec<Attachment> {
    let keep: HashSet<String> = valid.iter().map(|it| network.host_ifname(it)).collect();
    let links = match host.links() {
        Ok(links) => links,
        Err(error) => {
            errors.push(error.into());
            return Vec::new();
        }
    };
    let (stale, alive): (Vec<Link>, Vec<Link>) = links
        .into_iter()
        .partition(|link| network.owns(link) && !keep.contains(&link.name));
    for link in &stale {
        errors.extend(pod_link::remove(host, &link.name).err());
    }
    // The interfaces of the stale entries no longer exist, so the entries are orphans now.
    errors.extend(remove_orphans(pins, host).err());
    let alive: HashSet<&str> = alive.iter().map(|link| link.name.as_str()).collect();
    match pins.interfaces() {
        Ok(interfaces) => {
            for ifname in interfaces {
                if network.may_own(&ifname) && !alive.contains(ifname.as_str()) {
                    errors.extend(pins.forget(&ifname).map_err(Error::from).err());
                }
            }
        }
        Err(error) => errors.push(error.into()),
    }
    let aliases = stale.iter().filter_map(|link| link.alias.as_deref());
    aliases
        .filter_map(|alias| network.attachment_of(alias))
        .collect()
}

fn remove_orphans(pins: &Pins, host: &mut Netlink) -> Result<(), Error> {
    match PodEntries::open_to_remove(pins)? {
        Some(mut entries) => entries.remove_orphans(host),
        None => Ok(()),
    }
}

/// Releases the addresses of stale attachments. An IPAM plugin that implements GC does so itself.
/// host-local does not, but its leases name their attachments, even without a link. With any other
/// plugin, only the attachments whose links existed (`stale`) are known.
fn release_addresses(
    request: &Request,
    valid: &[Attachment],
    mut stale: Vec<Attachment>,
) -> Vec<Error> {
    let mut errors = Vec::new();
    let ipam = match Ipam::find(request) {
        Ok(ipam) => ipam,
        Err(error) => return vec![error],
    };
    if let Some(leases) = Leases::of(&request.conf) {
        match leases.holders() {
            Ok(holders) => stale.extend(holders.into_iter().filter(|it| !valid.contains(it))),
            Err(error) => errors.push(error),
        }
        errors.extend(leases.remove_half_written().err());
    }
    let mut done = HashSet::new();
    for attachment in &stale {
        if done.insert((&attachment.container_id, &attachment.ifname)) {
            errors.extend(ipam.del(attachment).err());
        }
    }
    errors.extend(ipam.del_elsewhere(|it| !valid.contains(it)));
    errors.extend(ipam.gc().err());
    errors
}
