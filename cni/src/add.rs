//! ADD: connects a container, or leaves nothing behind.

use crate::{
    Request,
    conf::Conf,
    error::Error,
    ipam::Ipam,
    pod_entry::PodEntries,
    pod_link::{self, Ends, PodLink},
    result::Added,
};
use ipip_abi::{Mac, Pod};
use ipip_datapath::Programs;
use std::net::Ipv4Addr;

/// Connects the container.
pub fn add(request: &Request) -> Result<Added, Error> {
    // Everything that can be found wrong is, before anything is changed.
    let mtu = mtu(&request.conf)?;
    let conf = &request.conf;
    let mut addition = Addition {
        request,
        mtu,
        programs: Programs::open(&conf.pins, conf.attach).map_err(Error::NotReady)?,
        entries: PodEntries::open(&conf.pins)?,
        ipam: Ipam::find(request)?,
        link: PodLink::open(&request.env)?,
        done: Vec::new(),
    };
    addition.link.expect_absent()?;
    match addition.run() {
        Ok(added) => Ok(added),
        Err(cause) => Err(addition.undo(cause)),
    }
}

struct Addition<'a> {
    request: &'a Request,
    mtu: u32,
    programs: Programs,
    entries: PodEntries,
    ipam: Ipam<'a>,
    link: PodLink,
    done: Vec<Step>,
}

/// What must be undone if a later step fails.
#[derive(Clone, Copy, Debug)]
enum Step {
    Address,
    Veth,
    Programs,
    PodEntry { ifindex: u32 },
}

impl Addition<'_> {
    /// The steps. One that may fail halfway is noted before it is tried.
    fn run(&mut self) -> Result<Added, Error> {
        self.done.push(Step::Address);
        let lease = self.ipam.add()?;
        let address = lease.address;
        self.expect_free(address)?;

        // Not before: a veth that was not ours to make is not ours to remove.
        self.link.create(self.mtu)?;
        self.done.push(Step::Veth);
        let ends = self.link.ends()?;
        self.link.set_up_host(&ends, address)?;

        self.done.push(Step::Programs);
        self.programs.attach_pod(&self.link.host_ifname)?;

        let ifindex = ends.host.index;
        self.done.push(Step::PodEntry { ifindex });
        self.entries.insert(address, pod_entry(&ends))?;

        self.link.set_up_pod(&ends, address)?;
        Ok(Added {
            host_ifname: ends.host.name,
            host_mac: Mac(ends.host.mac),
            ifname: ends.pod.name,
            mac: Mac(ends.pod.mac),
            mtu: self.mtu,
            netns: self.request.env.netns.clone().unwrap_or_default(),
            address,
            dns: lease.dns,
        })
    }

    /// Fails if a pod that lives has the address: its traffic would go to ours.
    fn expect_free(&mut self, address: Ipv4Addr) -> Result<(), Error> {
        let Some(entry) = self.entries.get(address)? else {
            return Ok(());
        };
        let links = self.link.host.links()?;
        match links.into_iter().find(|link| link.index == entry.ifindex) {
            Some(holder) => Err(Error::AddressInUse {
                address,
                holder: holder.name,
            }),
            // Left by a container that died; ours takes its place.
            None => Ok(()),
        }
    }

    /// Undoes what was done, last first, and finishes whatever fails.
    fn undo(&mut self, cause: Error) -> Error {
        let mut errors = Vec::new();
        while let Some(step) = self.done.pop() {
            let undone = match step {
                Step::Address => self.ipam.del(),
                Step::Veth => pod_link::remove(&mut self.link.host, &self.link.host_ifname),
                Step::Programs => self
                    .programs
                    .detach(&self.link.host_ifname)
                    .map_err(Error::from),
                Step::PodEntry { ifindex } => self.entries.remove_of(ifindex),
            };
            errors.extend(undone.err());
        }
        if errors.is_empty() {
            return cause;
        }
        Error::Undo {
            cause: Box::new(cause),
            errors,
        }
    }
}

/// The entry of a pod with this veth.
pub fn pod_entry(ends: &Ends) -> Pod {
    Pod {
        ifindex: ends.host.index,
        mac: Mac(ends.pod.mac),
        host_mac: Mac(ends.host.mac),
    }
}

/// The pod's MTU; fails if the node cannot take pods yet.
fn mtu(conf: &Conf) -> Result<u32, Error> {
    let node = ipip_datapath::config(&conf.pins).map_err(Error::NotReady)?;
    if node.ipip0_ifindex == 0 {
        return Err(Error::NotConfigured(conf.pins.version_dir()));
    }
    match conf.mtu {
        Some(mtu) if mtu > node.pod_mtu => Err(Error::Mtu {
            mtu,
            most: node.pod_mtu,
        }),
        Some(mtu) => Ok(mtu),
        None => Ok(node.pod_mtu),
    }
}
