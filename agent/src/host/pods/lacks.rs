//! What a pod lacks of its host's side, and its repair.

use super::LocalPod;
use crate::{
    host::observe::PermanentNeighbours,
    repairs::{self, Repair},
};
use ipip_abi::Mac;
use ipip_netlink::{LinkChange, Netlink, Route, RouteKind};
use std::{collections::BTreeSet, net::Ipv4Addr};
use tracing::debug;

/// What a pod lacks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lacks {
    /// Its interface is down.
    pub up: bool,
    /// Its interface has another MAC.
    pub mac: bool,
    /// The route to it.
    pub route: bool,
    /// Its permanent neighbour entry.
    pub neighbour: bool,
    /// The pod itself has stated a new MAC, for example that of a guest; no other program is at fault.
    pub follow: bool,
}

/// Address and interface of the host's routes that are like those of the plugin.
pub struct PodRoutes(BTreeSet<(Ipv4Addr, u32)>);

impl PodRoutes {
    /// Reads them.
    pub fn read(netlink: &mut Netlink) -> Result<Self, ipip_netlink::Error> {
        let like_ours = |route: &Route| {
            let index = route.oif?;
            let wanted = Route {
                protocol: route.protocol,
                ..Route::on_link(route.destination, index)
            };
            let is_to_one = route.destination.prefix() == 32 && route.kind == RouteKind::Unicast;
            (is_to_one && *route == wanted).then(|| (route.destination.ip(), index))
        };
        let routes = netlink.routes()?;
        Ok(Self(routes.iter().filter_map(like_ours).collect()))
    }
}

/// Whether the pod lacks its permanent neighbour entry.
pub fn lacks_neighbour(pod: &LocalPod, neighbours: &PermanentNeighbours) -> bool {
    !neighbours.contains(&(pod.link.index, pod.address, pod.entry.mac.0))
}

impl Lacks {
    /// What `pod` lacks of what its entry says.
    pub fn of(pod: &LocalPod, routes: &PodRoutes, neighbours: &PermanentNeighbours) -> Self {
        let LocalPod {
            address,
            entry,
            link,
        } = pod;
        Self {
            up: !link.up,
            mac: Mac(link.mac) != entry.host_mac,
            route: !routes.0.contains(&(*address, link.index)),
            neighbour: lacks_neighbour(pod, neighbours),
            follow: false,
        }
    }

    /// Sets it.
    pub fn repair(self, netlink: &mut Netlink, pod: &LocalPod) -> Result<(), ipip_netlink::Error> {
        let LocalPod {
            address,
            entry,
            link,
        } = pod;
        let (name, index) = (&link.name, link.index);
        if self.mac {
            let change = LinkChange {
                mac: Some(entry.host_mac.0),
                ..LinkChange::default()
            };
            netlink.change_link(index, &change)?;
            let was = Mac(link.mac);
            let what =
                format!("the MAC of {name}, the interface of the pod {address}: it was {was}");
            repairs::record(Repair::PodLink, what);
        }
        if self.up {
            let change = LinkChange {
                up: Some(true),
                ..LinkChange::default()
            };
            netlink.change_link(index, &change)?;
            let what = format!("{name}, the interface of the pod {address}: it was down");
            repairs::record(Repair::PodLink, what);
        }
        if self.route {
            netlink.replace_route(&Route::on_link((*address).into(), index))?;
            let what = format!("the route to the pod {address} through {name}");
            repairs::record(Repair::PodRoute, what);
        }
        // A change of the MAC removes the neighbours of the interface.
        if self.neighbour || self.follow || self.mac {
            netlink.add_neighbour(index, *address, entry.mac.0)?;
        }
        if self.neighbour {
            let what = format!("the neighbour entry of the pod {address} on {name}");
            repairs::record(Repair::PodNeighbour, what);
        }
        if self.follow {
            debug!(pod = %address, mac = %entry.mac, "the neighbour entry follows the pod");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::pod, *};

    fn neighbour(last: u8) -> PermanentNeighbours {
        [(7, Ipv4Addr::new(10, 42, 1, 2), [2, 0, 0, 0, 0, last])].into()
    }

    #[test]
    fn a_pod_lacks_what_differs_from_its_entry() {
        let routes = PodRoutes([(Ipv4Addr::new(10, 42, 1, 2), 7)].into());
        let lacks = Lacks::of(&pod(), &routes, &neighbour(1));
        assert_eq!(lacks, Lacks::default());
        let mut down = pod();
        down.link.up = false;
        down.link.mac = [2, 0, 0, 0, 0, 9];
        let nothing = PodRoutes(BTreeSet::new());
        let everything = Lacks {
            up: true,
            mac: true,
            route: true,
            neighbour: true,
            follow: false,
        };
        assert_eq!(Lacks::of(&down, &nothing, &neighbour(9)), everything);
    }
}
