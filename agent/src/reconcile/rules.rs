//! The agent's rules in nftables: SNAT, the guard against other machines, and the accept rules for firewalls.

use crate::{
    host::{
        firewall::{self, Drops, Traffic},
        forward_accept,
        guard::{self, Guard},
        masquerade::{Masquerade, TABLE},
        stale_flows,
    },
    problems::{Problem, Reason},
    reconcile::Error,
    repairs::{self, Repair},
};
use ipnetwork::Ipv4Network;
use std::net::Ipv4Addr;
use tracing::{info, warn};

/// The rules that were set last.
#[derive(Default)]
pub struct Rules {
    masquerade: Option<Masquerade>,
    guard: Option<Guard>,
    /// The pod CIDRs of the accept rules; the inner `None` means that there are no rules.
    accepted: Option<Option<Vec<Ipv4Network>>>,
    /// The firewalls that drop packets of pods.
    problems: Vec<Problem>,
    /// Why the accept rules could not be set.
    refused: Option<Problem>,
    /// Why the guard could not be set.
    unguarded: Option<Problem>,
    /// Whether the rules of firewalls could not be read last time.
    is_blind: bool,
}

impl Rules {
    /// Sets the SNAT rules. With `recheck`, queries the kernel even if the rules are unchanged. `is_inside` tells which
    /// destinations of pods need no SNAT.
    pub fn ensure_masquerade(
        &mut self,
        wanted: Masquerade,
        is_inside: impl Fn(Ipv4Addr) -> bool,
        recheck: bool,
    ) -> Result<(), Error> {
        let unchanged = self.masquerade.as_ref() == Some(&wanted);
        if unchanged && !recheck {
            return Ok(());
        }
        if !wanted.is_in_place()? {
            wanted.apply()?;
            if unchanged {
                let what = format!("the nftables table ip {TABLE}, which was deleted or changed");
                repairs::record(Repair::Masquerade, what);
            }
            if wanted.outside {
                match stale_flows::forget(&wanted.pods, is_inside) {
                    Ok(0) => {}
                    Ok(flows) => {
                        info!(
                            flows,
                            "connections of pods that began without SNAT begin again"
                        );
                    }
                    // New connections work; old ones end some time.
                    Err(error) => {
                        warn!(%error, "connections of pods that began without SNAT keep their addresses");
                    }
                }
            }
        }
        self.masquerade = Some(wanted);
        Ok(())
    }

    /// Sets the rules that keep other machines from routing into the pod network. With `recheck`, queries the kernel even
    /// if the rules are unchanged. A failure is a problem and no error: pods lack nothing.
    pub fn ensure_guard(&mut self, wanted: Guard, recheck: bool) {
        let refused = self.try_guard(wanted, recheck).err();
        self.unguarded = refused.map(|it| Problem::new(Reason::Guard, it));
    }

    fn try_guard(&mut self, wanted: Guard, recheck: bool) -> Result<(), guard::Error> {
        let unchanged = self.guard.as_ref() == Some(&wanted);
        if unchanged && !recheck {
            return Ok(());
        }
        // If one of these fails, the next reconciliation tries again.
        self.guard = None;
        if !wanted.is_in_place()? {
            wanted.apply()?;
            if unchanged {
                let table = guard::TABLE;
                let what = format!("the nftables table ip {table}, which was deleted or changed");
                repairs::record(Repair::Guard, what);
            }
        }
        self.guard = Some(wanted);
        Ok(())
    }

    /// Sets the accept rules for `pods`, or removes them. With `recheck`, queries the kernel even if the rules are
    /// unchanged. A failure is a problem and no error: [`Self::check_firewalls`] tells whether pods lack anything.
    pub fn ensure_forward_accept(&mut self, pods: Option<&[Ipv4Network]>, recheck: bool) {
        let refused = self.try_forward_accept(pods, recheck).err();
        self.refused = refused.map(|it| Problem::new(Reason::ForwardAccept, it));
    }

    fn try_forward_accept(
        &mut self,
        pods: Option<&[Ipv4Network]>,
        recheck: bool,
    ) -> Result<(), Error> {
        let wanted = pods.map(<[_]>::to_vec);
        let unchanged = self.accepted.as_ref() == Some(&wanted);
        if unchanged && !recheck {
            return Ok(());
        }
        match pods {
            None if unchanged => {}
            None => forward_accept::remove()?,
            Some(pods) => {
                if forward_accept::ensure(pods)? && unchanged {
                    let chain = forward_accept::CHAIN;
                    let what = format!(
                        "the chain {chain} of iptables, or the jump to it, which was missing or changed"
                    );
                    repairs::record(Repair::ForwardAccept, what);
                }
            }
        }
        self.accepted = Some(wanted);
        Ok(())
    }

    /// Looks for firewalls that drop `traffic`; `None` looks for nothing.
    pub fn check_firewalls(&mut self, traffic: Option<&Traffic<'_>>) {
        match traffic.map_or_else(|| Ok(Vec::new()), firewall::check) {
            Ok(drops) => {
                self.problems = drops.iter().map(problem).collect();
                self.is_blind = false;
            }
            // No reason to stop using the node.
            Err(error) if !self.is_blind => {
                warn!(%error, "cannot tell whether a firewall drops packets of pods");
                self.is_blind = true;
            }
            Err(_) => {}
        }
    }

    /// What an operator should correct in the firewalls of this host.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let of_rules = self.refused.iter().chain(&self.unguarded);
        self.problems.iter().chain(of_rules)
    }
}

fn problem(drops: &Drops) -> Problem {
    let reason = if drops.cut_services() {
        Reason::FirewallDropsPods
    } else {
        Reason::FirewallDropsOutside
    };
    Problem::new(reason, drops)
}
