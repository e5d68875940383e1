//! The host's side of pods: interface, route and neighbour entry, as the CNI plugin sets them up. Another program (a
//! network manager, `ip route flush`) may remove them; then the node itself, Services and the Internet do not reach
//! the pod any more.
//!
//! The map `PODS` says what must be there. ADD writes a pod's entry before its route, and DEL removes it before the
//! interface. So a pod that was never complete may be one that is being added, and is given some time.

mod lacks;

use crate::{
    host::observe::PermanentNeighbours,
    problems::{Problem, Reason},
};
use aya::maps::MapError;
use ipip_abi::{Mac, Pod};
use ipip_datapath::{POD_ALIAS_START, Pins, Pods};
use ipip_netlink::{Link, Netlink};
use lacks::{Lacks, PodRoutes, lacks_neighbour};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tracing::info;

/// How long ADD may take from the pod's entry to its neighbour entry, on a machine under load.
const ADD_TIME: Duration = Duration::from_millis(500);
/// The shortest time between two MACs of one pod that its neighbour entry follows: a pod may state new ones all the time.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(5);

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
    entries: Pods,
    pins: Pins,
    /// The pods of the last call, by address and interface.
    seen: BTreeMap<(Ipv4Addr, u32), Seen>,
    problems: Vec<Problem>,
    examined: Examined,
    /// The host's routes to pods; none if they must be read again. They stand among those of all peers.
    routes: Option<PodRoutes>,
}

/// What is known of a pod from earlier calls.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// If it may be in the middle of ADD, the time at which it was seen first.
    added: Option<Instant>,
    /// The MAC of its neighbour entry when that was complete last.
    mac: Option<Mac>,
    /// The last time at which its neighbour entry followed a MAC that the pod stated.
    followed: Option<Instant>,
    /// Whether the pod has stated another one since, too soon.
    waits: bool,
}

impl PodLinks {
    /// Opens the pinned map. No pod is examined yet.
    ///
    /// # Errors
    /// The map cannot be opened.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            entries: Pods::open(pins)?,
            pins: pins.clone(),
            seen: BTreeMap::new(),
            problems: Vec::new(),
            examined: Examined::default(),
            routes: None,
        })
    }

    /// Whether a pod may lack its neighbour entry: the permanent neighbours or the number of new MACs that pods have stated
    /// differ from those of [`Self::set_examined`].
    pub fn may_lack_neighbours(&self, neighbours: &PermanentNeighbours, learned: u64) -> bool {
        self.examined.may_lack(neighbours, learned)
    }

    /// Records that every pod's neighbour entry was examined without an error.
    pub fn set_examined(&mut self, neighbours: &PermanentNeighbours, learned: u64) {
        if self.may_lack_neighbours(neighbours, learned) {
            self.examined = Examined(Some((neighbours.clone(), learned)));
        }
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

    /// Makes `PODS` agree with what every version knows of the pods: a plugin of another version may have deleted some.
    ///
    /// # Errors
    /// The maps cannot be read or written.
    pub fn reconcile_records(&mut self) -> Result<(), Error> {
        for address in self.entries.reconcile(&self.pins)? {
            info!(%address, "a plugin of another ABI version has deleted this pod: its entry is removed");
        }
        Ok(())
    }

    /// Repairs `pods`. Returns those that are not in the middle of ADD, and every error; steps without an error are
    /// done.
    pub fn ensure<'a>(
        &mut self,
        netlink: &mut Netlink,
        pods: &'a [LocalPod],
        neighbours: &PermanentNeighbours,
        now: Instant,
    ) -> (Vec<&'a LocalPod>, Vec<Error>) {
        let routes = match self
            .routes
            .take()
            .map_or_else(|| PodRoutes::read(netlink), Ok)
        {
            Ok(routes) => routes,
            Err(error) => return (Vec::new(), vec![error.into()]),
        };
        let (mut set_up, mut errors) = (Vec::new(), Vec::new());
        let mut is_complete = true;
        let earlier = std::mem::take(&mut self.seen);
        self.problems.clear();
        for pod in pods {
            let key = (pod.address, pod.link.index);
            let lacks = Lacks::of(pod, &routes, neighbours);
            is_complete &= lacks == Lacks::default();
            let mut seen = earlier.get(&key).copied().unwrap_or(Seen {
                added: Some(now),
                ..Seen::default()
            });
            let first_seen = seen.added.filter(|_| lacks != Lacks::default());
            seen.added = first_seen.filter(|it| now.duration_since(*it) < ADD_TIME);
            self.seen.insert(key, seen);
            if seen.added.is_some() {
                continue;
            }
            if pod.link.master.is_some() {
                self.problems.push(taken(pod));
                continue;
            }
            errors.extend(self.repair(netlink, pod, lacks, now));
            set_up.push(pod);
        }
        self.routes = Some(routes).filter(|_| is_complete);
        (set_up, errors)
    }

    /// Reads the routes again at the next [`Self::ensure`].
    pub fn forget_routes(&mut self) {
        self.routes = None;
    }

    /// Repairs the neighbour entries of `pods`, apart from those in the middle of ADD. Returns every error.
    pub fn ensure_neighbours(
        &mut self,
        netlink: &mut Netlink,
        pods: &[LocalPod],
        neighbours: &PermanentNeighbours,
        now: Instant,
    ) -> Vec<Error> {
        let mut errors = Vec::new();
        for pod in pods {
            let seen = self.seen.get(&(pod.address, pod.link.index));
            let is_set_up = seen.is_some_and(|it| it.added.is_none());
            if is_set_up && pod.link.master.is_none() {
                let lacks = Lacks {
                    neighbour: lacks_neighbour(pod, neighbours),
                    ..Lacks::default()
                };
                errors.extend(self.repair(netlink, pod, lacks, now));
            }
        }
        errors
    }

    /// Whether a pod must be examined again now although nothing has changed: it may be in the middle of ADD, or its
    /// neighbour entry may follow it again.
    pub fn wait(&self, now: Instant) -> bool {
        let is_due = |it: &Seen| it.added.is_some() || it.waits && it.may_follow(now);
        self.seen.values().any(is_due)
    }

    fn repair(
        &mut self,
        netlink: &mut Netlink,
        pod: &LocalPod,
        lacks: Lacks,
        now: Instant,
    ) -> Option<Error> {
        if lacks != Lacks::default() && !self.is_current(pod) {
            return None;
        }
        let seen = self.seen.entry((pod.address, pod.link.index)).or_default();
        let lacks = seen.filter(lacks, pod.entry.mac, now);
        if lacks == Lacks::default() {
            return None;
        }
        let repaired = lacks.repair(netlink, pod);
        // Otherwise the pod has just been deleted.
        let error = repaired.err().filter(|error| !error.is_not_found());
        error.map(Error::from)
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

/// The permanent neighbours, and the number of new MACs that pods had stated, when the neighbour entries of all pods were
/// examined last.
#[derive(Debug, Default)]
struct Examined(Option<(PermanentNeighbours, u64)>);

impl Examined {
    /// Whether a pod may lack its neighbour entry since then. Nearly all changes of neighbours concern no pod; then no
    /// map is read.
    fn may_lack(&self, neighbours: &PermanentNeighbours, learned: u64) -> bool {
        let same = |(before, count): &(PermanentNeighbours, u64)| {
            before == neighbours && *count == learned
        };
        !self.0.as_ref().is_some_and(same)
    }
}

impl Seen {
    /// What to repair now of what the pod lacks: the neighbour entry follows a new MAC only now and then.
    fn filter(&mut self, mut lacks: Lacks, mac: Mac, now: Instant) -> Lacks {
        self.waits = false;
        if lacks.neighbour && self.mac.is_some_and(|before| before != mac) {
            if !self.may_follow(now) {
                self.waits = true;
                lacks.neighbour = false;
                return lacks;
            }
            self.followed = Some(now);
            lacks.neighbour = false;
            lacks.follow = true;
        }
        self.mac = Some(mac);
        lacks
    }

    fn may_follow(&self, now: Instant) -> bool {
        let is_over = |followed| now.duration_since(followed) >= FOLLOW_INTERVAL;
        self.followed.is_none_or(is_over)
    }
}

/// Whether the CNI plugin has created the interface.
fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.kind.as_deref() == Some("veth") && alias.starts_with(POD_ALIAS_START)
}

fn taken(pod: &LocalPod) -> Problem {
    let (name, address) = (&pod.link.name, pod.address);
    let text = format!(
        "{name}, the interface of the pod {address}, is a port of a bridge or bond of another program, so the pod lacks Services and the Internet; remedy: `ip link set {name} nomaster`"
    );
    Problem::new(Reason::PodInterfaceTaken, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn pod() -> LocalPod {
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
                up: true,
                alias: Some("ipip ipip c1 eth0".into()),
                ..Link::default()
            },
        }
    }

    const NEIGHBOUR: Lacks = Lacks {
        up: false,
        mac: false,
        route: false,
        neighbour: true,
        follow: false,
    };
    const FOLLOW: Lacks = Lacks {
        neighbour: false,
        follow: true,
        ..NEIGHBOUR
    };

    #[test]
    fn a_neighbour_entry_follows_its_pod_once_per_interval() {
        let [first, second] = [1, 2].map(|last| Mac([2, 0, 0, 0, 0, last]));
        let (start, mut seen) = (Instant::now(), Seen::default());
        assert_eq!(
            seen.filter(Lacks::default(), first, start),
            Lacks::default()
        );
        assert_eq!(seen.filter(NEIGHBOUR, second, start), FOLLOW);
        let soon = start + Duration::from_secs(1);
        assert_eq!(seen.filter(NEIGHBOUR, first, soon), Lacks::default());
        assert!(seen.waits && !seen.may_follow(soon));
        let later = start + FOLLOW_INTERVAL;
        assert!(seen.waits && seen.may_follow(later));
        assert_eq!(seen.filter(NEIGHBOUR, first, later), FOLLOW);
        assert!(!seen.waits);
    }

    #[test]
    fn a_neighbour_entry_that_another_program_deletes_is_repaired_at_once_each_time() {
        let (now, mut seen) = (Instant::now(), Seen::default());
        for _ in 0..3 {
            let mac = Mac([2, 0, 0, 0, 0, 1]);
            assert_eq!(seen.filter(NEIGHBOUR, mac, now), NEIGHBOUR);
        }
    }

    #[test]
    fn neighbours_that_are_not_permanent_concern_no_pod() {
        let of_pod = (7, Ipv4Addr::new(10, 42, 1, 2), [2, 0, 0, 0, 0, 1]);
        let with_pod = PermanentNeighbours::from([of_pod]);
        assert!(Examined::default().may_lack(&with_pod, 0));
        let examined = Examined(Some((with_pod.clone(), 3)));
        assert!(!examined.may_lack(&with_pod, 3));
        assert!(examined.may_lack(&PermanentNeighbours::new(), 3));
        assert!(examined.may_lack(&with_pod, 4), "a pod stated a new MAC");
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
