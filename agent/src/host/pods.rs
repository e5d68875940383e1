//! The host's side of pods: interface, route and neighbour entry, as the CNI plugin sets them up. Another program (a
//! network manager, `ip route flush`) may remove them; then the node itself, Services and the Internet do not reach
//! the pod any more.
//!
//! The map `PODS` says what must be there. ADD writes a pod's entry before its route, and DEL removes it before the
//! interface. So a pod that was never complete may be one that is being added, and is given some time.

use crate::{
    problems::{Problem, Reason},
    repairs::{self, Repair},
};
use aya::maps::MapError;
use ipip_abi::{Mac, Pod};
use ipip_datapath::{CachedMap, Pins, open_pods};
use ipip_netlink::{Link, LinkChange, Neighbour, Netlink, Route, RouteKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// The start of the alias that the CNI plugin gives to the host's side of a pod.
const ALIAS_START: &str = "ipip ";
/// How long ADD may take from the pod's entry to its neighbour entry, on a machine under load.
const ADD_TIME: Duration = Duration::from_millis(500);

/// The pods could not be read, or one could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The map cannot be opened.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// The map cannot be read.
    #[error("cannot read PODS: {0}")]
    Map(#[from] MapError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
}

/// A pod of this node whose interface exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LocalPod {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its entry in `PODS`.
    pub entry: Pod,
    /// The host's side of its veth.
    pub link: Link,
}

/// Keeps the host's side of pods complete.
pub struct PodLinks {
    entries: CachedMap<Pod>,
    /// The pods of the last call, by address and interface. A pod that may be in the middle of ADD has the time at
    /// which it was seen first.
    seen: BTreeMap<(Ipv4Addr, u32), Option<Instant>>,
    problems: Vec<Problem>,
}

/// What a pod lacks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Lacks {
    up: bool,
    mac: bool,
    route: bool,
    neighbour: bool,
}

/// What the kernel has for pods.
struct Present {
    /// Address and interface of routes like those of the plugin.
    routes: BTreeSet<(Ipv4Addr, u32)>,
    /// Interface, address and MAC of permanent neighbours.
    neighbours: BTreeSet<(u32, Ipv4Addr, [u8; 6])>,
}

impl PodLinks {
    /// Opens the pinned map. No pod is examined yet.
    ///
    /// # Errors
    /// The map cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            entries: open_pods(pins)?,
            seen: BTreeMap::new(),
            problems: Vec::new(),
        })
    }

    /// The pods of this node. Their interfaces are those of `links` that the CNI plugin has created.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn list(&self, links: &[Link]) -> Result<Vec<LocalPod>, Error> {
        let by_index: BTreeMap<u32, &Link> = links
            .iter()
            .filter(|link| is_ours(link))
            .map(|link| (link.index, link))
            .collect();
        let mut pods = Vec::new();
        for entry in self.entries.iter() {
            let (address, entry) = entry?;
            if let Some(&link) = by_index.get(&entry.ifindex) {
                pods.push(LocalPod {
                    address: address.into(),
                    entry,
                    link: link.clone(),
                });
            }
        }
        Ok(pods)
    }

    /// Repairs `pods`. Returns those that are not in the middle of ADD, and every error; steps without an error are
    /// done.
    pub fn ensure<'a>(
        &mut self,
        netlink: &mut Netlink,
        pods: &'a [LocalPod],
        now: Instant,
    ) -> (Vec<&'a LocalPod>, Vec<Error>) {
        let present = match Present::read(netlink) {
            Ok(present) => present,
            Err(error) => return (Vec::new(), vec![error.into()]),
        };
        let (mut set_up, mut errors) = (Vec::new(), Vec::new());
        let earlier = std::mem::take(&mut self.seen);
        self.problems.clear();
        for pod in pods {
            let key = (pod.address, pod.link.index);
            let lacks = Lacks::of(pod, &present);
            let first_seen = match earlier.get(&key) {
                _ if lacks == Lacks::default() => None,
                Some(first_seen) => *first_seen,
                None => Some(now),
            };
            let being_added = first_seen.filter(|it| now.duration_since(*it) < ADD_TIME);
            self.seen.insert(key, being_added);
            if being_added.is_some() {
                continue;
            }
            if pod.link.master.is_some() {
                self.problems.push(taken(pod));
                continue;
            }
            if lacks != Lacks::default() && self.is_current(pod) {
                match lacks.repair(netlink, pod) {
                    // The pod has just been deleted.
                    Err(error) if !error.is_not_found() => errors.push(error.into()),
                    _ => {}
                }
            }
            set_up.push(pod);
        }
        (set_up, errors)
    }

    /// Whether a pod may be in the middle of ADD, so that it must be examined again soon.
    pub fn wait(&self) -> bool {
        self.seen.values().any(Option::is_some)
    }

    /// Pods that are not repaired.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether the entry of the pod is still the same: DEL may have released its address since it was read.
    fn is_current(&self, pod: &LocalPod) -> bool {
        let entry = self.entries.get(&pod.address.into(), 0);
        entry.is_ok_and(|entry| entry == pod.entry)
    }
}

/// Whether the CNI plugin has created the interface.
fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.kind.as_deref() == Some("veth") && alias.starts_with(ALIAS_START)
}

fn taken(pod: &LocalPod) -> Problem {
    let (name, address) = (&pod.link.name, pod.address);
    let text = format!(
        "{name}, the interface of the pod {address}, is a port of a bridge or bond of another program, so the pod lacks Services and the Internet; remedy: `ip link set {name} nomaster`"
    );
    Problem::new(Reason::PodInterfaceTaken, text)
}

impl Present {
    fn read(netlink: &mut Netlink) -> Result<Self, ipip_netlink::Error> {
        let like_ours = |route: &Route| {
            let index = route.oif?;
            let wanted = Route {
                protocol: route.protocol,
                ..Route::on_link(route.destination, index)
            };
            let is_to_one = route.destination.prefix() == 32 && route.kind == RouteKind::Unicast;
            (is_to_one && *route == wanted).then(|| (route.destination.ip(), index))
        };
        let permanent = |it: &Neighbour| {
            let mac = it.mac.filter(|_| it.permanent)?;
            Some((it.index, it.address, mac))
        };
        Ok(Self {
            routes: netlink.routes()?.iter().filter_map(like_ours).collect(),
            neighbours: netlink.neighbours()?.iter().filter_map(permanent).collect(),
        })
    }
}

impl Lacks {
    fn of(pod: &LocalPod, present: &Present) -> Self {
        let LocalPod {
            address,
            entry,
            link,
        } = pod;
        Self {
            up: !link.up,
            mac: Mac(link.mac) != entry.host_mac,
            route: !present.routes.contains(&(*address, link.index)),
            neighbour: !present
                .neighbours
                .contains(&(link.index, *address, entry.mac.0)),
        }
    }

    fn repair(self, netlink: &mut Netlink, pod: &LocalPod) -> Result<(), ipip_netlink::Error> {
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
        if self.neighbour || self.mac {
            netlink.add_neighbour(index, *address, entry.mac.0)?;
        }
        if self.neighbour {
            let what = format!("the neighbour entry of the pod {address} on {name}");
            repairs::record(Repair::PodNeighbour, what);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> LocalPod {
        LocalPod {
            address: Ipv4Addr::new(10, 42, 1, 2),
            entry: Pod {
                ifindex: 7,
                mac: Mac([2, 0, 0, 0, 0, 1]),
                host_mac: Mac([2, 0, 0, 0, 0, 2]),
                flags: 0,
            },
            link: Link {
                index: 7,
                name: "pod1".into(),
                kind: Some("veth".into()),
                mac: [2, 0, 0, 0, 0, 2],
                mtu: 1480,
                gso_ipv4_max: None,
                up: true,
                carrier: true,
                noarp: false,
                loopback: false,
                ethernet: true,
                peer_index: Some(2),
                peer_netns_id: Some(1),
                master: None,
                alias: Some("ipip ipip c1 eth0".into()),
            },
        }
    }

    fn present() -> Present {
        Present {
            routes: [(Ipv4Addr::new(10, 42, 1, 2), 7)].into(),
            neighbours: [(7, Ipv4Addr::new(10, 42, 1, 2), [2, 0, 0, 0, 0, 1])].into(),
        }
    }

    #[test]
    fn a_pod_lacks_what_differs_from_its_entry() {
        assert_eq!(Lacks::of(&pod(), &present()), Lacks::default());
        let mut down = pod();
        down.link.up = false;
        down.link.mac = [2, 0, 0, 0, 0, 9];
        let nothing = Present {
            routes: BTreeSet::new(),
            neighbours: [(7, Ipv4Addr::new(10, 42, 1, 2), [2, 0, 0, 0, 0, 9])].into(),
        };
        let everything = Lacks {
            up: true,
            mac: true,
            route: true,
            neighbour: true,
        };
        assert_eq!(Lacks::of(&down, &nothing), everything);
    }

    #[test]
    fn only_interfaces_of_the_cni_plugin_are_repaired() {
        let ours = pod().link;
        assert!(is_ours(&ours));
        for other in [
            Link {
                alias: None,
                ..ours.clone()
            },
            Link {
                kind: Some("dummy".into()),
                ..ours
            },
        ] {
            assert!(!is_ours(&other));
        }
    }
}
