//! Finds machines of the local networks that have the address of a remote node.
//!
//! The kernel asks for the addresses by ARP, a few at a time, and this module reads its neighbour table. What it finds is
//! only reported: an answer changes no route, because any machine of the network can send one.

use ipip_abi::Mac;
use ipip_netlink::{Error, Netlink};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// Time after which an address is asked for again.
const INTERVAL: Duration = Duration::from_secs(300);
/// Addresses that are asked for in one step, so that a step sends few broadcasts and fills no neighbour table.
const BATCH: usize = 16;

/// The probe of one host.
pub struct LanProbe {
    netlink: Netlink,
    /// The addresses that were asked for, each with its interface and the time.
    asked: BTreeMap<(u32, Ipv4Addr), Instant>,
    answers: BTreeMap<Ipv4Addr, Mac>,
}

impl LanProbe {
    /// A probe that has not asked yet.
    pub fn new(netlink: Netlink) -> Self {
        Self {
            netlink,
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// The addresses that another machine has, with its MAC.
    pub fn answers(&self) -> &BTreeMap<Ipv4Addr, Mac> {
        &self.answers
    }

    /// Reads the answers so far, and asks for the next of `candidates`, given with their interfaces. A gateway that
    /// answers for other machines (proxy ARP) does not count. Returns whether [`Self::answers`] has changed.
    ///
    /// # Errors
    /// The neighbour table cannot be read or changed.
    pub fn step(
        &mut self,
        candidates: &BTreeSet<(u32, Ipv4Addr)>,
        gateways: &BTreeSet<Ipv4Addr>,
        now: Instant,
    ) -> Result<bool, Error> {
        let before = self.answers.clone();
        self.asked.retain(|it, _| candidates.contains(it));
        let asked: BTreeSet<Ipv4Addr> = self.asked.keys().map(|(_, address)| *address).collect();
        self.answers.retain(|address, _| asked.contains(address));
        if !asked.is_empty() {
            self.read(gateways)?;
        }
        let is_due = |it: &&(u32, Ipv4Addr)| {
            let last = self.asked.get(*it);
            last.is_none_or(|last| now.duration_since(*last) >= INTERVAL)
        };
        let due: Vec<(u32, Ipv4Addr)> = candidates
            .iter()
            .filter(is_due)
            .take(BATCH)
            .copied()
            .collect();
        for (index, address) in due {
            self.netlink.use_neighbour(index, address)?;
            self.asked.insert((index, address), now);
        }
        Ok(self.answers != before)
    }

    fn read(&mut self, gateways: &BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        let table = self.netlink.neighbours()?;
        let of_gateways = table.iter().filter(|it| gateways.contains(&it.address));
        let of_gateways: BTreeSet<[u8; 6]> = of_gateways.filter_map(|it| it.mac).collect();
        for it in &table {
            if !self.asked.contains_key(&(it.index, it.address)) {
                continue;
            }
            match it.mac.filter(|mac| !of_gateways.contains(mac)) {
                Some(mac) if it.reachable => {
                    self.answers.insert(it.address, Mac(mac));
                }
                // An entry that is usable and not reachable is about to be confirmed: undecided.
                Some(_) if it.usable => {}
                _ => {
                    self.answers.remove(&it.address);
                }
            }
        }
        Ok(())
    }
}
