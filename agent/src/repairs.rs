//! Repairs: host state that another program changed and the agent set again.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::atomic::{AtomicU64, Ordering},
};
use tracing::warn;

/// What was repaired.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repair {
    /// A kernel setting.
    Sysctl,
    /// The nftables table with the SNAT rules.
    Masquerade,
    /// One end of the tunnel interface `ipip0`.
    TunnelLink,
    /// The address of `ipip0`.
    TunnelAddress,
    /// The agent's routes in the main table.
    Route,
    /// The host's side of a pod's veth.
    PodLink,
    /// The host's route to a pod.
    PodRoute,
    /// The host's neighbour entry of a pod.
    PodNeighbour,
    /// A program on an interface.
    Program,
    /// The FOU sockets.
    Fou,
    /// The accept rules in the chain `FORWARD` of iptables.
    ForwardAccept,
    /// The nftables table that keeps other machines out of the pod network.
    Guard,
}

impl Repair {
    const ALL: [Self; 12] = [
        Self::Sysctl,
        Self::Masquerade,
        Self::TunnelLink,
        Self::TunnelAddress,
        Self::Route,
        Self::PodLink,
        Self::PodRoute,
        Self::PodNeighbour,
        Self::Program,
        Self::Fou,
        Self::ForwardAccept,
        Self::Guard,
    ];

    /// Its name, in `CamelCase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sysctl => "Sysctl",
            Self::Masquerade => "Masquerade",
            Self::TunnelLink => "TunnelLink",
            Self::TunnelAddress => "TunnelAddress",
            Self::Route => "Route",
            Self::PodLink => "PodLink",
            Self::PodRoute => "PodRoute",
            Self::PodNeighbour => "PodNeighbour",
            Self::Program => "Program",
            Self::Fou => "Fou",
            Self::ForwardAccept => "ForwardAccept",
            Self::Guard => "Guard",
        }
    }
}

/// The number of repairs since this process started, by [`Repair`].
static COUNTS: [AtomicU64; Repair::ALL.len()] = [const { AtomicU64::new(0) }; Repair::ALL.len()];

/// Logs and counts a repair. `what` names the object and what was wrong with it.
pub fn record(repair: Repair, what: impl Display) {
    COUNTS[repair as usize].fetch_add(1, Ordering::Relaxed);
    warn!(repair = repair.name(), "set again: {what}");
}

/// The number of repairs since this process started, by name; only those that occurred.
pub fn counts() -> BTreeMap<&'static str, u64> {
    Repair::ALL
        .into_iter()
        .map(|it| (it.name(), COUNTS[it as usize].load(Ordering::Relaxed)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repair_is_counted_under_its_name() {
        for (index, repair) in Repair::ALL.into_iter().enumerate() {
            assert_eq!(repair as usize, index, "{}", repair.name());
        }
        let before = counts().get("Masquerade").copied().unwrap_or_default();
        record(Repair::Masquerade, "the table ipip was deleted");
        assert_eq!(counts()["Masquerade"], before + 1);
    }
}
