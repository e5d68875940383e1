//! The veth between host and pod, and what both ends need so that packets pass.
//!
//! The pod has a /32 and one neighbour, the gateway, which is the host side of its veth whatever
//! node it is on. Both ends know each other's MAC for good: no ARP.

use crate::{attachment::Network, env::Container, error::Error};
use ipip_abi::Mac;
use ipip_netlink::{Link, LinkChange, NetNs, Netlink, Route, Veth, set_sysctl};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The gateway of every pod; an address that never leaves the veth (RFC 3927).
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

const EVERYTHING: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// The two places between which the veth is, or is to be.
pub struct PodLink {
    /// The host's links and routes.
    pub host: Netlink,
    /// The pod's.
    pub pod: Netlink,
    /// The pod's namespace.
    netns: NetNs,
    /// Name of the end in the host.
    pub host_ifname: String,
    /// Name of the end in the pod.
    pub ifname: String,
}

/// How large packets may be.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// Bytes of the largest packet to be segmented later, else the kernel's default.
    pub gso_max: Option<u32>,
}

/// Both ends, as they were born.
pub struct Ends {
    /// The end in the host.
    pub host: Link,
    /// The end in the pod.
    pub pod: Link,
}

impl PodLink {
    /// Opens host and pod; changes nothing.
    pub fn open(network: &Network, container: &Container) -> Result<Self, Error> {
        let path = container.netns.clone().unwrap_or_default();
        let netns = NetNs::open(path).map_err(Error::UnknownContainer)?;
        if netns.is_same_as(&NetNs::current()?)? {
            return Err(Error::Environment(vec![format!(
                "CNI_NETNS {} is the host's own network namespace: give the container's",
                netns.path().display()
            )]));
        }
        Ok(Self {
            host: Netlink::open()?,
            pod: Netlink::open_in(&netns)?,
            netns,
            host_ifname: network.host_ifname(&container.attachment),
            ifname: container.attachment.ifname.clone(),
        })
    }

    /// Makes the veth. The pod's end is born in the pod, under its final name. Of two that want the
    /// same veth the kernel serves one, and the other has changed nothing.
    pub fn create(&mut self, sizes: Sizes, mac: Option<Mac>) -> Result<(), Error> {
        let created = self.host.add_veth(&Veth {
            name: &self.host_ifname,
            peer_name: &self.ifname,
            peer_ns: Some(&self.netns),
            mtu: Some(sizes.mtu),
            gso_ipv4_max: sizes.gso_max,
            peer_mac: mac.map(|mac| mac.0),
            ..Veth::default()
        });
        match created {
            Err(error) if error.is_already_exists() => {
                let name = match self.host.link(&self.host_ifname)? {
                    Some(link) => link.name,
                    None => self.ifname.clone(),
                };
                Err(Error::AlreadyAdded(name))
            }
            created => Ok(created?),
        }
    }

    /// Both ends of the veth that is there.
    pub fn ends(&mut self) -> Result<Ends, Error> {
        let find = |netlink: &mut Netlink, name: &String| {
            netlink
                .link(name)?
                .ok_or_else(|| Error::Vanished(name.clone()))
        };
        Ok(Ends {
            host: find(&mut self.host, &self.host_ifname)?,
            pod: find(&mut self.pod, &self.ifname)?,
        })
    }

    /// Writes on the host side whose it is.
    pub fn sign(&mut self, ends: &Ends, alias: &str) -> Result<(), Error> {
        let change = LinkChange {
            alias: Some(alias),
            ..LinkChange::default()
        };
        Ok(self.host.change_link(ends.host.index, &change)?)
    }

    /// Does to both ends what needs no address. No packet has a way yet.
    pub fn prepare(&mut self, ends: &Ends) -> Result<(), Error> {
        turn_ipv6_off(&self.host_ifname)?;
        self.host.change_link(ends.host.index, &up())?;
        self.netns.run(|| turn_ipv6_off(&self.ifname))??;
        let index = ends.pod.index;
        self.pod.change_link(index, &up())?;
        for route in pod_routes(index) {
            self.pod.replace_route(&route)?;
        }
        self.pod.add_neighbour(index, GATEWAY, ends.host.mac)?;
        Ok(())
    }

    /// Gives the pod its address, and lets the host know it.
    pub fn give_address(&mut self, ends: &Ends, address: Ipv4Addr) -> Result<(), Error> {
        let index = ends.host.index;
        self.host.replace_route(&host_route(index, address))?;
        self.host.add_neighbour(index, address, ends.pod.mac)?;
        self.pod.add_address(ends.pod.index, address.into())?;
        Ok(())
    }
}

/// The route of the host to the pod.
pub fn host_route(index: u32, address: Ipv4Addr) -> Route {
    Route::on_link(address.into(), index)
}

/// The routes of the pod: to the gateway, and through it to everything.
pub fn pod_routes(index: u32) -> [Route; 2] {
    [
        Route::on_link(GATEWAY.into(), index),
        Route::through(EVERYTHING, GATEWAY, index),
    ]
}

/// Removes the veth by its end in the host; fine if it is gone.
pub fn remove(host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    let Some(link) = host.link(host_ifname)? else {
        return Ok(());
    };
    match host.delete_link(link.index) {
        // The container's namespace may die at any moment, and the veth with it.
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

fn up() -> LinkChange<'static> {
    LinkChange {
        up: Some(true),
        ..LinkChange::default()
    }
}

/// The datapath carries IPv4 only: link-local chatter would all be dropped.
fn turn_ipv6_off(ifname: &str) -> Result<(), Error> {
    match set_sysctl(&format!("net.ipv6.conf.{ifname}.disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}
