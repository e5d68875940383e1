//! ADD: connects a container. If a step fails, the completed steps are rolled back.

use crate::{
    conf::{Bandwidth, Conf, parse_mac},
    env::Container,
    error::Error,
    ipam::{Ipam, Lease},
    leases::Leases,
    lock::Lock,
    pod_entry::PodEntries,
    pod_link::{self, Ends, PodLink, Sizes},
    request::Request,
    result::Added,
};
use ipip_abi::{Mac, Pod};
use ipip_datapath::{ErrorList, Programs};
use std::net::Ipv4Addr;

/// Connects the container.
///
/// # Errors
/// The first step that failed, and every error of its rollback.
pub fn add(request: &Request, container: &Container) -> Result<Added, Error> {
    // Every check that is possible beforehand runs before the first change.
    let conf = &request.conf;
    let sizes = sizes(conf)?;
    let mac = mac(conf, container)?;
    let attach = conf.attach_at_first()?;
    let ipam = Ipam::find(request)?;
    Leases::adopt(conf)?;
    let link = PodLink::open(&conf.network, container)?;
    let _lock = Lock::of_attachment(&conf.run_dir, conf.pins.root(), &link.host_ifname)?;
    let mut addition = Addition {
        request,
        container,
        sizes,
        mac,
        programs: Programs::open_for_pods(&conf.pins, attach).map_err(Error::NotReady)?,
        entries: PodEntries::open(&conf.pins)?,
        ipam: &ipam,
        link,
        done: Vec::new(),
    };
    match addition.run() {
        Ok(added) => Ok(added),
        Err(cause) => Err(addition.undo(cause)),
    }
}

struct Addition<'a> {
    request: &'a Request,
    container: &'a Container,
    sizes: Sizes,
    mac: Option<Mac>,
    programs: Programs,
    entries: PodEntries,
    ipam: &'a Ipam<'a>,
    link: PodLink,
    done: Vec<Step>,
}

/// A step that is rolled back if a later one fails.
#[derive(Clone, Copy, Debug)]
enum Step {
    Address,
    Pins,
    Veth,
    PodEntry { ifindex: u32 },
}

impl Addition<'_> {
    /// The steps. A step that may fail halfway is recorded in `done` before it is tried.
    fn run(&mut self) -> Result<Added, Error> {
        // The veth comes first: it decides which of two ADDs of one container proceeds. Steps are
        // recorded only after it, because the losing ADD must not remove the other's objects.
        self.link.create(self.sizes, self.mac)?;
        self.done = vec![Step::Address, Step::Pins, Step::Veth];
        let ends = self.link.ends()?;
        let network = &self.request.conf.network;
        let alias = network.alias(&self.container.attachment);
        self.link.set_alias(&ends, &alias)?;

        // The IPAM plugin runs while the kernel attaches programs.
        let allocation = self.ipam.start_add(self.container)?;
        let prepared = self.prepare(&ends);
        let lease = allocation.finish();
        prepared?;
        let Lease { address, dns } = lease?;
        self.expect_free(address)?;

        let ifindex = ends.host.index;
        self.done.push(Step::PodEntry { ifindex });
        let entry = pod_entry(&ends, self.request.conf.bandwidth);
        self.entries.insert(address, entry)?;
        self.link.assign_address(&ends, address)?;
        Ok(Added {
            host_ifname: ends.host.name,
            host_mac: Mac(ends.host.mac),
            ifname: ends.pod.name,
            mac: Mac(ends.pod.mac),
            mtu: self.sizes.mtu,
            netns: self.container.netns.clone().unwrap_or_default(),
            address,
            dns,
        })
    }

    fn prepare(&mut self, ends: &Ends) -> Result<(), Error> {
        self.programs.attach_pod(&self.link.host_ifname)?;
        self.link.prepare(ends)
    }

    /// Fails if an existing pod has the address: its traffic would go to the new pod.
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
            // The entry of a container that no longer exists; it will be overwritten.
            None => Ok(()),
        }
    }

    /// Rolls back the completed steps, the last one first. An error does not stop the rollback.
    fn undo(&mut self, cause: Error) -> Error {
        let mut errors = Vec::new();
        while let Some(step) = self.done.pop() {
            let undone = match step {
                Step::Address => self.ipam.del(&self.container.attachment),
                Step::Veth => pod_link::remove(&mut self.link.host, &self.link.host_ifname),
                Step::Pins => self
                    .request
                    .conf
                    .pins
                    .forget(&self.link.host_ifname)
                    .map_err(Error::from),
                Step::PodEntry { ifindex } => self.entries.remove_of_interface(ifindex),
            };
            errors.extend(undone.err());
        }
        if errors.is_empty() {
            return cause;
        }
        Error::Undo {
            cause: Box::new(cause),
            errors: ErrorList(errors),
        }
    }
}

/// The entry in `PODS` for a pod with this veth.
pub fn pod_entry(ends: &Ends, bandwidth: Bandwidth) -> Pod {
    Pod {
        ifindex: ends.host.index,
        mac: Mac(ends.pod.mac),
        host_mac: Mac(ends.host.mac),
        flags: if bandwidth.is_limited() {
            Pod::HOST_STACK
        } else {
            0
        },
    }
}

/// The MAC that the configuration or `CNI_ARGS` requests for the pod.
fn mac(conf: &Conf, container: &Container) -> Result<Option<Mac>, Error> {
    match (conf.mac, &container.args.mac) {
        (Some(mac), _) => Ok(Some(mac)),
        (None, Some(text)) => parse_mac("MAC in CNI_ARGS", text.clone()).map(Some),
        (None, None) => Ok(None),
    }
}

/// The largest sizes of the pod's packets.
///
/// # Errors
/// The datapath is absent or not configured, or the requested MTU exceeds the node's.
pub fn sizes(conf: &Conf) -> Result<Sizes, Error> {
    // Maps of a version that is not current may be empty.
    conf.pins.expect_current().map_err(Error::NotReady)?;
    let node = ipip_datapath::read_config(&conf.pins).map_err(Error::NotReady)?;
    if node.ipip0_ifindex == 0 {
        return Err(Error::NotConfigured(conf.pins.version_dir()));
    }
    let mtu = conf.mtu.unwrap_or(node.pod_mtu);
    if mtu > node.pod_mtu {
        return Err(Error::Mtu {
            mtu,
            most: node.pod_mtu,
        });
    }
    Ok(Sizes {
        mtu,
        gso_max: (node.pod_gso_max != 0).then_some(node.pod_gso_max),
    })
}
