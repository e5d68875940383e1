//! DEL: disconnects a container, also after an ADD that failed or was killed. It needs neither the
//! container's namespace nor `prevResult`, and an error does not stop the remaining steps.

use crate::{
    attachment::Attachment,
    env::Container,
    error::Error,
    ipam::{Ipam, Release},
    leases::Leases,
    lock::Lock,
    pod_entry::PodEntries,
    pod_link,
    request::Request,
    result::Previous,
};
use ipip_netlink::Netlink;
use std::net::Ipv4Addr;

/// Disconnects the container. Repeating it is no error.
///
/// # Errors
/// Every step that failed; all others were completed.
pub fn del(request: &Request, container: &Container) -> Result<(), Error> {
    let conf = &request.conf;
    let host_ifname = conf.network.host_ifname(&container.attachment);
    let mut errors = Vec::new();
    let lock = Lock::of_attachment(&conf.run_dir, conf.pins.root(), &host_ifname);
    // Without the lock, DEL continues: it must be possible to remove a container.
    let _lock = lock.map_err(|error| errors.push(error)).ok();
    let mut note = |done: Result<(), Error>| errors.extend(done.err());
    let ipam = Ipam::find(request).map_err(|error| note(Err(error))).ok();
    note(Leases::adopt(conf));
    let attachment = &container.attachment;
    let mut release = None;
    match Netlink::open() {
        Ok(mut host) => {
            // The entry goes first. Without it, no packet is delivered to the veth and no packet of
            // the pod passes, so the address is free for another pod. The IPAM plugin therefore
            // runs while the kernel removes the veth.
            let removed = remove_entry(request, &mut host, &host_ifname);
            if removed.is_ok() {
                release = ipam.as_ref().map(|ipam| ipam.start_del(attachment));
            }
            note(removed);
            note(pod_link::remove(&mut host, &host_ifname));
        }
        Err(error) => note(Err(error.into())),
    }
    // The pins go after the veth: unpinning a link whose interface exists waits for an RCU grace
    // period.
    note(conf.pins.forget(&host_ifname).map_err(Error::from));
    if let Some(ipam) = &ipam {
        let started = release.unwrap_or_else(|| ipam.start_del(attachment));
        let released = started.and_then(Release::finish);
        note(released.and_then(|()| expect_returned(request, attachment)));
        // Last: a lease may be moved by another call at any time before.
        errors.extend(ipam.del_elsewhere(|it| it == attachment));
    }
    Error::all(errors)
}

/// The address in `prevResult`, if the runtime sent one.
fn address(request: &Request) -> Option<Ipv4Addr> {
    let written = request.conf.previous.as_ref()?;
    let previous = Previous::parse(written, request.version).ok()?;
    previous.address().ok()
}

fn remove_entry(request: &Request, host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    let Some(mut entries) = PodEntries::open_to_remove(&request.conf.pins)? else {
        return Ok(());
    };
    let Some(link) = host.link(host_ifname)? else {
        return entries.remove_orphans(host);
    };
    // If the address is known, one lookup is enough; otherwise all entries are read.
    match address(request) {
        Some(address) if entries.remove(address, link.index)? => Ok(()),
        _ => entries.remove_of_interface(link.index),
    }
}

fn expect_returned(request: &Request, attachment: &Attachment) -> Result<(), Error> {
    match (Leases::of(&request.conf), address(request)) {
        (Some(leases), Some(address)) => leases.expect_returned(address, attachment),
        _ => Ok(()),
    }
}
