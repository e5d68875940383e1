//! Faults that an operator should correct: of this host, or of what the cluster says about it.
//!
//! Each part of a reconciliation returns the problems that it finds, and does its other work all the same. One
//! place (`daemon::event_loop`) logs them, and publishes them as Events of the Node, in `/readyz` and in the report for
//! `ipipctl status`.

use std::{
    collections::BTreeMap,
    fmt::Display,
    time::{SystemTime, UNIX_EPOCH},
};
use tracing::{error, info, warn};

/// What kind of problem it is. The reason of its Event is `Ipip` and this name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// A part of the desired state could not be written.
    NotInSync,
    /// Another CNI is configured on this host.
    OtherNetwork,
    /// Another pod network has left interfaces, routes or rules on this host.
    OtherNetworkLeftovers,
    /// A route that is not ours takes the place of one of ours.
    ForeignRoute,
    /// The configured MTU is too large.
    MtuDoesNotFit,
    /// A pod CIDR of this node does not agree with the pool `clusterPodCIDRs`.
    PodCidr,
    /// An InternalIP is on no interface.
    InternalIpNotLocal,
    /// Tunnel packets leave through an uplink with the source address of another one.
    SourceOfAnotherUplink,
    /// No InternalIP or no pod CIDR of this node can be used, because they are invalid, may not be claimed, or belong to
    /// older nodes.
    LeftOut,
    /// An address or pod CIDR of this node is invalid, may not be claimed, or belongs to an older node. The others work.
    Contested,
    /// A peer has an address that this host's own network uses.
    AddressInUse,
    /// A machine that is no node has the InternalIP of a node of another realm.
    LanConflict,
    /// A kernel setting is wrong and cannot be set.
    KernelSetting,
    /// Another program has made a pod's interface a port of its bridge.
    PodInterfaceTaken,
    /// A firewall drops packets of pods to Services.
    FirewallDropsPods,
    /// A firewall drops packets between pods and the Internet, perhaps on purpose.
    FirewallDropsOutside,
    /// The rules that let pods pass a firewall could not be set.
    ForwardAccept,
    /// The token of the agent could write the objects of other nodes.
    TooManyRights,
    /// Most peers disappeared together, and stay in use for a time.
    PeersHeld,
    /// The health endpoints cannot be served, because another process has the port.
    HealthNotServed,
    /// The rules that keep other machines from routing into the pod network could not be set.
    Guard,
    /// Nobody has stated the public endpoint of this node, but peers see a public address of it.
    PublicEndpoint,
}

impl Reason {
    /// Every kind.
    #[cfg(test)]
    const ALL: [Self; 22] = [
        Self::NotInSync,
        Self::OtherNetwork,
        Self::OtherNetworkLeftovers,
        Self::ForeignRoute,
        Self::MtuDoesNotFit,
        Self::PodCidr,
        Self::InternalIpNotLocal,
        Self::SourceOfAnotherUplink,
        Self::LeftOut,
        Self::Contested,
        Self::AddressInUse,
        Self::LanConflict,
        Self::KernelSetting,
        Self::PodInterfaceTaken,
        Self::FirewallDropsPods,
        Self::FirewallDropsOutside,
        Self::ForwardAccept,
        Self::TooManyRights,
        Self::PeersHeld,
        Self::HealthNotServed,
        Self::Guard,
        Self::PublicEndpoint,
    ];

    /// Its name, in `CamelCase` as Kubernetes writes reasons.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotInSync => "NotInSync",
            Self::OtherNetwork => "OtherNetwork",
            Self::OtherNetworkLeftovers => "OtherNetworkLeftovers",
            Self::ForeignRoute => "ForeignRoute",
            Self::MtuDoesNotFit => "MtuDoesNotFit",
            Self::PodCidr => "PodCidr",
            Self::InternalIpNotLocal => "InternalIpNotLocal",
            Self::SourceOfAnotherUplink => "SourceOfAnotherUplink",
            Self::LeftOut => "LeftOut",
            Self::Contested => "Contested",
            Self::AddressInUse => "AddressInUse",
            Self::LanConflict => "LanConflict",
            Self::KernelSetting => "KernelSetting",
            Self::PodInterfaceTaken => "PodInterfaceTaken",
            Self::FirewallDropsPods => "FirewallDropsPods",
            Self::FirewallDropsOutside => "FirewallDropsOutside",
            Self::ForwardAccept => "ForwardAccept",
            Self::TooManyRights => "TooManyRights",
            Self::PeersHeld => "PeersHeld",
            Self::HealthNotServed => "HealthNotServed",
            Self::Guard => "Guard",
            Self::PublicEndpoint => "PublicEndpoint",
        }
    }

    /// Whether pods of this node lack a part of their network, so that the node counts as not ready.
    pub fn blocks(self) -> bool {
        matches!(
            self,
            Self::NotInSync
                | Self::LeftOut
                | Self::KernelSetting
                | Self::FirewallDropsPods
                | Self::TooManyRights
        )
    }
}

/// A problem that holds now.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Problem {
    /// Its kind.
    pub reason: Reason,
    /// What is wrong, with names and values, and the remedy.
    pub text: String,
}

impl Problem {
    /// A problem with this text.
    pub fn new(reason: Reason, text: impl Display) -> Self {
        Self {
            reason,
            text: text.to_string(),
        }
    }
}

/// The problems that hold now, each with the time at which it was found. Logs each when it begins and when it ends.
#[derive(Debug, Default)]
pub struct Problems(BTreeMap<Problem, u64>);

impl Problems {
    /// Replaces the problems.
    pub fn set(&mut self, found: Vec<Problem>, now: SystemTime) {
        let now = seconds(now);
        let mut current = BTreeMap::new();
        for problem in found {
            let since = self.0.get(&problem).copied().unwrap_or(now);
            current.insert(problem, since);
        }
        for problem in current.keys().filter(|it| !self.0.contains_key(it)) {
            let (reason, problem) = (problem.reason, &problem.text);
            if reason.blocks() {
                error!(reason = reason.name(), "{problem}");
            } else {
                warn!(reason = reason.name(), "{problem}");
            }
        }
        for problem in self.0.keys().filter(|it| !current.contains_key(it)) {
            info!(reason = problem.reason.name(), "solved: {}", problem.text);
        }
        self.0 = current;
    }

    /// Each problem, and the Unix time in seconds since which it holds.
    pub fn iter(&self) -> impl Iterator<Item = (&Problem, u64)> {
        self.0.iter().map(|(problem, since)| (problem, *since))
    }

    /// `Ok` if no problem blocks; otherwise the texts of those that do, one in a line.
    pub fn ready(&self) -> Result<(), String> {
        let blocking = self.0.keys().filter(|it| it.reason.blocks());
        let texts: Vec<&str> = blocking.map(|it| it.text.as_str()).collect();
        if texts.is_empty() {
            return Ok(());
        }
        Err(texts.join("\n"))
    }
}

/// The Unix time in seconds.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_problem_that_persists_keeps_the_time_at_which_it_was_found() {
        let mut problems = Problems::default();
        let route = Problem::new(Reason::ForeignRoute, "route");
        let mtu = Problem::new(Reason::MtuDoesNotFit, "mtu");
        problems.set(vec![route.clone()], at(10));
        problems.set(vec![mtu.clone(), route.clone()], at(20));
        let held: Vec<_> = problems.iter().collect();
        assert_eq!(held, [(&route, 10), (&mtu, 20)]);
        problems.set(vec![mtu.clone()], at(30));
        problems.set(vec![mtu, route.clone()], at(40));
        assert_eq!(problems.iter().next(), Some((&route, 40)));
    }

    #[test]
    fn troubleshooting_explains_each_reason() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
        let document = std::fs::read_to_string(path).unwrap();
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            let name = reason.name();
            assert_eq!(reason as usize, index, "{name} is not at its place in ALL");
            assert!(document.contains(&format!("`Ipip{name}`")), "{name}");
        }
    }

    #[test]
    fn only_problems_that_block_make_the_node_not_ready() {
        let mut problems = Problems::default();
        problems.set(vec![Problem::new(Reason::OtherNetwork, "flannel")], at(1));
        assert_eq!(problems.ready(), Ok(()));
        let failed = Problem::new(Reason::NotInSync, "cannot write");
        problems.set(vec![failed, Problem::new(Reason::OtherNetwork, "x")], at(2));
        assert_eq!(problems.ready(), Err("cannot write".into()));
    }
}
