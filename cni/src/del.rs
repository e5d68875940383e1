//! DEL: undoes ADD, or what is left of it. Needs neither the container's namespace nor
//! `prevResult`, and finishes whatever fails.

use crate::{Request, error::Error, ipam::Ipam, pod_entry::PodEntries, pod_link};
use ipip_datapath::{Error as DatapathError, Programs};
use ipip_netlink::Netlink;

/// Disconnects the container; fine if that was done before.
pub fn del(request: &Request) -> Result<(), Error> {
    let host_ifname = request.env.host_ifname();
    let mut errors = Vec::new();
    match Netlink::open() {
        Ok(mut host) => {
            // In this order nothing is delivered to a veth that is half gone, and the address
            // is free for another pod only after all that leads to this one is gone.
            errors.extend(remove_entry(request, &mut host, &host_ifname).err());
            errors.extend(detach(request, &host_ifname).err());
            errors.extend(pod_link::remove(&mut host, &host_ifname).err());
        }
        Err(error) => errors.push(error.into()),
    }
    errors.extend(Ipam::find(request).and_then(|ipam| ipam.del()).err());
    Error::all(errors)
}

fn remove_entry(request: &Request, host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    let mut entries = match PodEntries::open(&request.conf.pins) {
        Err(Error::Datapath(DatapathError::NotPinned(_))) => return Ok(()),
        entries => entries?,
    };
    match host.link(host_ifname)? {
        Some(link) => entries.remove_of(link.index),
        None => entries.remove_orphans(host),
    }
}

fn detach(request: &Request, host_ifname: &str) -> Result<(), Error> {
    match Programs::open(&request.conf.pins, request.conf.attach) {
        Err(DatapathError::NotPinned(_)) => Ok(()),
        programs => Ok(programs?.detach(host_ifname)?),
    }
}
