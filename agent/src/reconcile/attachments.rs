//! The programs on the uplinks and on `ipip0`. The CNI plugin attaches the programs on pods.

use crate::host::{
    facts::{Facts, Uplink},
    ipip0,
};
use ipip_abi::Program;
use ipip_datapath::{Attachment, Error, Programs};
use std::collections::BTreeMap;
use tracing::info;

/// Keeps the programs of the uplinks and of `ipip0` attached.
pub struct Attachments {
    programs: Programs,
    /// The uplinks at the last call that succeeded.
    attached: BTreeMap<u32, Uplink>,
}

impl Attachments {
    /// Nothing is attached or detached yet.
    pub fn new(programs: Programs) -> Self {
        Self {
            programs,
            attached: BTreeMap::new(),
        }
    }

    /// Attaches missing programs, and detaches those of vanished interfaces and of uplinks that `configured` does
    /// not name. With `recheck`, the interfaces are examined even if the uplinks are unchanged. Returns every
    /// error; steps without an error are done.
    pub fn ensure(&mut self, configured: &[String], facts: &Facts, recheck: bool) -> Vec<Error> {
        // A changed route or address can make another interface an uplink.
        if !recheck && self.attached == facts.uplinks {
            return Vec::new();
        }
        let present = match self.programs.attached() {
            Ok(present) => present,
            Err(error) => return vec![error],
        };
        let mut errors = self.detach_unwanted(present, configured, facts);
        errors.extend(self.programs.attach_host(ipip0::NAME).err());
        for uplink in facts.uplinks.values() {
            errors.extend(self.programs.attach_uplink(&uplink.name).err());
        }
        if errors.is_empty() {
            self.attached = facts.uplinks.clone();
        }
        errors
    }

    /// An interface that no longer leads to any peer keeps its program, which passes all foreign packets. It loses
    /// the program only if the configuration names other uplinks.
    fn detach_unwanted(
        &mut self,
        present: Vec<Attachment>,
        configured: &[String],
        facts: &Facts,
    ) -> Vec<Error> {
        // A missing uplink may be a mistyped name. The interface that was meant keeps its program.
        let is_wanted = |name: &String| {
            configured.is_empty() || configured.contains(name) || !facts.missing_uplinks.is_empty()
        };
        let mut errors = Vec::new();
        for it in present {
            let is_uplink = it.program == Program::FromUplink;
            let is_ours = is_uplink || it.program == Program::FromHost;
            if is_ours && (it.defunct || (is_uplink && !is_wanted(&it.ifname))) {
                info!(interface = it.ifname, program = %it.program, "detached");
                errors.extend(self.programs.detach(&it.ifname).err());
            }
        }
        errors
    }
}
