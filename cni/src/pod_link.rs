//! The veth between host and pod, with the addresses, routes and neighbours of both ends.
//!
//! The pod has a /32 address and one neighbour, the gateway: the host side of its veth, with the
//! same address and MAC on every node. Both ends have permanent neighbour entries, so they send no ARP. The datapath
//! answers requests for the gateway, of guests behind the pod for example.

use crate::{attachment::Network, env::Container, error::Error};
use ipip_abi::{Mac, POD_GATEWAY, POD_GATEWAY_MAC};
use ipip_netlink::{
    Features, Link, LinkChange, NetNs, Netlink, Route, Veth, is_uncommon_segmentation_offload,
    set_sysctl,
};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;

/// The gateway of every pod.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::from_octets(POD_GATEWAY.0);

const EVERYTHING: Ipv4Network = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0).unwrap();

/// The two network namespaces of a veth, and the names of its ends. The veth itself need not exist.
pub struct PodLink {
    /// Netlink socket in the host's namespace.
    pub host: Netlink,
    /// Netlink socket in the pod's namespace.
    pub pod: Netlink,
    /// The pod's namespace.
    netns: NetNs,
    /// Name of the host side.
    pub host_ifname: String,
    /// Name of the pod side.
    pub ifname: String,
}

/// The largest sizes of packets.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// Largest GSO packet in bytes; `None` for the kernel's default.
    pub gso_max: Option<u32>,
}

/// Both ends of an existing veth.
pub struct Ends {
    /// The host side.
    pub host: Link,
    /// The pod side.
    pub pod: Link,
}

impl PodLink {
    /// Opens sockets in both namespaces. Changes nothing.
    pub fn open(network: &Network, container: &Container) -> Result<Self, Error> {
        let path = container.netns.clone().unwrap_or_default();
        let netns = NetNs::open(path).map_err(Error::UnknownContainer)?;
        if netns.is_same_as(&NetNs::current()?)? {
            return Err(Error::Environment(vec![format!(
                "CNI_NETNS {} is the host's own network namespace: give the path of the container's",
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

    /// Creates the veth. The pod side is created directly in the pod, under its final name. If two
    /// ADDs create the same veth, the kernel refuses one of them, which then has changed nothing.
    pub fn create(&mut self, sizes: Sizes, mac: Option<Mac>) -> Result<(), Error> {
        let created = self.host.add_veth(&Veth {
            name: &self.host_ifname,
            peer_name: &self.ifname,
            peer_ns: Some(&self.netns),
            mtu: Some(sizes.mtu),
            gso_ipv4_max: sizes.gso_max,
            mac: Some(POD_GATEWAY_MAC.0),
            peer_mac: mac.map(|mac| mac.0),
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

    /// Both ends of the existing veth.
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

    /// Writes the alias of the host side, which names the attachment.
    pub fn set_alias(&mut self, ends: &Ends, alias: &str) -> Result<(), Error> {
        let change = LinkChange {
            alias: Some(alias),
            ..LinkChange::default()
        };
        Ok(self.host.change_link(ends.host.index, &change)?)
    }

    /// Sets up both ends, except for the address. Packets cannot pass yet.
    pub fn prepare(&mut self, ends: &Ends) -> Result<(), Error> {
        disable_ipv6(&self.host_ifname)?;
        // New interfaces may not forward, if the host's `net.ipv4.conf.default.forwarding` is 0.
        set_sysctl(&forwarding(&self.host_ifname), "1")?;
        self.host.change_link(ends.host.index, &up())?;
        self.netns.run(|| disable_ipv6(&self.ifname))??;
        let index = ends.pod.index;
        // Large packets (GSO) of tunnels in the pod, of SCTP and others cannot be encapsulated whole. The pod's kernel
        // segments them, so that they need not take the host stack. A kernel may have no ethtool netlink.
        if let Some(mut features) = Features::open_in(&self.netns)? {
            features.turn_off(index, is_uncommon_segmentation_offload)?;
        }
        self.pod.change_link(index, &up())?;
        for route in pod_routes(index) {
            self.pod.replace_route(&route)?;
        }
        self.pod.add_neighbour(index, GATEWAY, ends.host.mac)?;
        Ok(())
    }

    /// Assigns the address to the pod, and adds route and neighbour to the host.
    pub fn assign_address(&mut self, ends: &Ends, address: Ipv4Addr) -> Result<(), Error> {
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

/// The routes of the pod: to the gateway, and the default route through it.
pub fn pod_routes(index: u32) -> [Route; 2] {
    [
        Route::on_link(GATEWAY.into(), index),
        Route::through(EVERYTHING, GATEWAY, index),
    ]
}

/// Removes the veth by its host side. If it does not exist, this is no error.
pub fn remove(host: &mut Netlink, host_ifname: &str) -> Result<(), Error> {
    let Some(link) = host.link(host_ifname)? else {
        return Ok(());
    };
    match host.delete_link(link.index) {
        // The container's namespace, and with it the veth, may be deleted at any time.
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

/// The kernel setting that lets the host forward packets from an interface.
pub fn forwarding(ifname: &str) -> String {
    format!("net.ipv4.conf.{ifname}.forwarding")
}

/// Disables IPv6 on an interface: the datapath would drop all of its link-local packets.
fn disable_ipv6(ifname: &str) -> Result<(), Error> {
    match set_sysctl(&format!("net.ipv6.conf.{ifname}.disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}
