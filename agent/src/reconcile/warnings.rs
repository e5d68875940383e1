//! Conditions that an operator should correct while the node still works.

use crate::reconcile::{host_route::HostRouteKey, mtu::MtuDoesNotFit};
use tracing::{error, warn};

/// The warnings that hold now. Each is logged once while it holds, not at every reconciliation.
#[derive(Default)]
pub struct Warnings {
    conflicts: Vec<(HostRouteKey, u8)>,
    mtu: Option<MtuDoesNotFit>,
}

impl Warnings {
    /// Replaces the foreign routes, given with their protocol, that block one of the agent's routes.
    pub fn set_conflicts(&mut self, conflicts: Vec<(HostRouteKey, u8)>) {
        for conflict in conflicts.iter().filter(|it| !self.conflicts.contains(it)) {
            let (key, protocol) = conflict;
            warn!(
                destination = %key.destination,
                protocol,
                remedy = "delete it, or correct the inventory",
                "a route that is not ours has the destination and metric of ours, which is not set"
            );
        }
        self.conflicts = conflicts;
    }

    /// Replaces the result of the check of the configured MTU.
    pub fn set_mtu(&mut self, checked: Result<(), MtuDoesNotFit>) {
        let refused = checked.err();
        if refused != self.mtu
            && let Some(error) = &refused
        {
            error!(%error, "pods get the largest MTU that fits");
        }
        self.mtu = refused;
    }
}
