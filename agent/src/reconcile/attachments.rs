//! The programs on the uplinks, on both ends of `ipip0` and on pods. The CNI plugin attaches the programs on pods; this module
//! attaches them again if another program has detached them.

use crate::{
    host::{
        facts::{Facts, Uplink},
        ipip0,
        pods::LocalPod,
    },
    reconcile::Error,
    repairs::{self, Repair},
};
use ipip_abi::Program;
use ipip_datapath::{AttachMode, Attachment, Pins, Programs};
use ipip_netlink::{Link, Netlink};
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use tracing::info;

/// Keeps programs attached.
pub struct Attachments {
    pins: Pins,
    programs: Programs,
    /// The uplinks at the last call that succeeded.
    attached: BTreeMap<u32, Uplink>,
    /// Indexes of the uplinks and of both ends of `ipip0` at the last call.
    known: BTreeSet<u32>,
}

/// The programs that are on each interface now, by the interface's name.
type Present = BTreeSet<(String, Program)>;

impl Attachments {
    /// Nothing is attached or detached yet.
    pub fn new(pins: &Pins, programs: Programs) -> Self {
        Self {
            pins: pins.clone(),
            programs,
            attached: BTreeMap::new(),
            known: BTreeSet::new(),
        }
    }

    /// Attaches missing programs, and detaches those of vanished interfaces and of uplinks that `configured` does
    /// not name. `links` are the interfaces of this host. With `recheck`, the interfaces are examined even if the
    /// uplinks are unchanged. Returns every error; steps without an error are done.
    pub fn ensure(
        &mut self,
        netlink: &mut Netlink,
        configured: &[String],
        facts: &Facts,
        links: &[Link],
        recheck: bool,
    ) -> Vec<Error> {
        // A changed route or address can make another interface an uplink.
        if !recheck && self.attached == facts.uplinks {
            return Vec::new();
        }
        let pinned = match self.programs.attached() {
            Ok(pinned) => pinned,
            Err(error) => return vec![error.into()],
        };
        let mut errors = Vec::new();
        let present = match present(netlink, &pinned, links) {
            Ok(present) => present,
            Err(error) => return vec![error.into()],
        };
        self.detach_unwanted(pinned, configured, facts, &mut errors);
        // `ipip0` may have been created after `links` were listed.
        let tunnel = [
            (ipip0::NAME, Program::FromHost),
            (ipip0::FAR_END, Program::FromFarEnd),
        ];
        let tunnel: Vec<_> = tunnel
            .into_iter()
            .filter_map(|(name, program)| {
                let link = netlink.link(name);
                let link = link.map_err(|error| errors.push(error.into())).ok()??;
                Some((link.index, (link.name, program)))
            })
            .collect();
        let uplinks = facts.uplinks.iter();
        let uplinks = uplinks.map(|(index, it)| (*index, (it.name.clone(), Program::FromUplink)));
        let earlier = std::mem::take(&mut self.known);
        for (index, wanted) in tunnel.into_iter().chain(uplinks) {
            self.known.insert(index);
            if present.contains(&wanted) {
                continue;
            }
            let (ifname, program) = wanted;
            let attached = match program {
                Program::FromHost => self.programs.attach_host(&ifname),
                Program::FromFarEnd => self.programs.attach_far_end(&ifname),
                _ => self.programs.attach_uplink(&ifname),
            };
            match attached {
                Ok(()) if earlier.contains(&index) => record(program, &ifname),
                Ok(()) => {}
                Err(error) => errors.push(error.into()),
            }
        }
        if errors.is_empty() {
            self.attached = facts.uplinks.clone();
        }
        errors
    }

    /// Attaches missing programs of `pods`. Returns every error; steps without an error are done.
    pub fn ensure_pods(&mut self, netlink: &mut Netlink, pods: &[&LocalPod]) -> Vec<Error> {
        let links: Vec<Link> = pods.iter().map(|pod| pod.link.clone()).collect();
        let pinned = match self.programs.attached() {
            Ok(pinned) => pinned,
            Err(error) => return vec![error.into()],
        };
        let present = match present(netlink, &pinned, &links) {
            Ok(present) => present,
            Err(error) => return vec![error.into()],
        };
        let mut errors = Vec::new();
        for Link { name, index, .. } in &links {
            let missing: Vec<Program> = [Program::FromPod, Program::ToPod]
                .into_iter()
                .filter(|program| !present.contains(&(name.clone(), *program)))
                .collect();
            if missing.is_empty() {
                continue;
            }
            let attached = self.programs.attach_pod(name);
            // DEL deletes the interface first and then its pins, and may not have seen the new ones.
            let is_there = netlink.link(name);
            if is_there.is_ok_and(|link| link.is_none_or(|link| link.index != *index)) {
                errors.extend(self.pins.forget(name).map_err(Error::from).err());
                continue;
            }
            match attached {
                Ok(()) => missing.iter().for_each(|program| record(*program, name)),
                Err(error) => errors.push(error.into()),
            }
        }
        errors
    }

    /// An interface that no longer leads to any peer keeps its program, which passes all foreign packets. It loses
    /// the program only if the configuration names other uplinks.
    fn detach_unwanted(
        &mut self,
        pinned: Vec<Attachment>,
        configured: &[String],
        facts: &Facts,
        errors: &mut Vec<Error>,
    ) {
        // A missing uplink may be a mistyped name. The interface that was meant keeps its program.
        let is_wanted = |name: &String| {
            configured.is_empty() || configured.contains(name) || !facts.missing_uplinks.is_empty()
        };
        for it in pinned {
            let is_uplink = it.program == Program::FromUplink;
            let is_ours =
                is_uplink || matches!(it.program, Program::FromHost | Program::FromFarEnd);
            if is_ours && (it.defunct || (is_uplink && !is_wanted(&it.ifname))) {
                info!(interface = it.ifname, program = %it.program, "detached");
                errors.extend(self.programs.detach(&it.ifname).map_err(Error::from).err());
            }
        }
    }
}

/// The programs of `pinned` that are on the interfaces `links`. A pin says that a clsact filter was attached, but
/// another program can remove the filter.
fn present(
    netlink: &mut Netlink,
    pinned: &[Attachment],
    links: &[Link],
) -> Result<Present, ipip_netlink::Error> {
    let mut present = Present::new();
    let mut filters: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for it in pinned.iter().filter(|it| !it.defunct) {
        if it.mode == AttachMode::Clsact {
            let Some(link) = links.iter().find(|link| link.name == it.ifname) else {
                continue;
            };
            let names = match filters.entry(link.index) {
                Entry::Occupied(names) => names.into_mut(),
                Entry::Vacant(names) => names.insert(netlink.clsact_programs(link.index)?),
            };
            if !names.iter().any(|name| name == it.program.name()) {
                continue;
            }
        }
        present.insert((it.ifname.clone(), it.program));
    }
    Ok(present)
}

fn record(program: Program, ifname: &str) {
    repairs::record(
        Repair::Program,
        format!("the program {program} on {ifname}"),
    );
}
