//! DEL: undoes ADD, or what is left of it. Needs neither the container's namespace nor
//! `prevResult`, and finishes whatever fails.

use crate::{
    Request,
    attachment::Attachment,
    env::Container,
    error::Error,
    ipam::{GivingBack, Ipam},
    leases::Leases,
    lock::Lock,
    pod_entry::PodEntries,
    pod_link,
    result::Previous,
};
use ipip_datapath::Error as DatapathError;
use ipip_netlink::Netlink;
use std::net::Ipv4Addr;

/// Disconnects the container; fine if that was done before.
pub fn del(request: &Request, container: &Container) -> Result<(), Error> {
    let conf = &request.conf;
    let host_ifname = conf.network.host_ifname(&container.attachment);
    let mut errors = Vec::new();
    let lock = Lock::of_attachment(&conf.run_dir, conf.pins.root(), &host_ifname);
    // Without it we go on all the same: a container must be able to end.
    let _lock = lock.map_err(|error| errors.push(error)).ok();
    let mut note = |done: Result<(), Error>| errors.extend(done.err());
    let ipam = Ipam::find(request).map_err(|error| note(Err(error))).ok();
    let attachment = &container.attachment;
    let mut giving_back = None;
    match Netlink::open() {
        Ok(mut host) => {
            // First the entry: without it nothing is delivered to a veth that is half gone, and
            // nothing that the dying pod sends passes. So from here on another pod may have the
            // address, and the IPAM plugin works while the kernel takes the veth apart.
            let removed = remove_entry(request, &mut host, &host_ifname);
            if removed.is_ok() {
                giving_back = ipam.as_ref().map(|ipam| ipam.start_del(attachment));
            }
            note(removed);
            note(pod_link::remove(&mut host, &host_ifname));
        }
        Err(error) => note(Err(error.into())),
    }
    // After the veth: a link that is unpinned while its interface lives waits for every CPU.
    note(conf.pins.forget(&host_ifname).map_err(Error::from));
    if let Some(ipam) = &ipam {
        let started = giving_back.unwrap_or_else(|| ipam.start_del(attachment));
        let given_back = started.and_then(GivingBack::finish);
        note(given_back.and_then(|()| expect_returned(request, attachment)));
    }
    Error::all(errors)
}

/// The address that ADD gave, as far as we are told.
fn address(request: &Request) -> Option<Ipv4Addr> {
    let written = request.conf.previous.as_ref()?;
    let previous = Previous::parse(written, request.version).ok()?;
    previous.address().ok()
}

fn remove_entry(request: &Request, host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    let mut entries = match PodEntries::open(&request.conf.pins) {
        Err(Error::Datapath(DatapathError::NotPinned(_))) => return Ok(()),
        entries => entries?,
    };
    let Some(link) = host.link(host_ifname)? else {
        return entries.remove_orphans(host);
    };
    // The address spares looking at the entries of all pods; if it is no help, we do.
    match address(request) {
        Some(address) if entries.remove(address, link.index)? => Ok(()),
        _ => entries.remove_of(link.index),
    }
}

fn expect_returned(request: &Request, attachment: &Attachment) -> Result<(), Error> {
    match (Leases::of(&request.conf), address(request)) {
        (Some(leases), Some(address)) => leases.expect_returned(address, attachment),
        _ => Ok(()),
    }
}
