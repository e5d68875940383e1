//! The paths to all peers.

use crate::paths::{
    candidate::Candidate,
    idle::Idle,
    limit::Limit,
    peer::{Meaning, Peer},
    schedule::Pace,
    search::Search,
    select::Cause,
    uses::Uses,
    why::Reason,
};
use ipip_abi::Candidate as Number;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// Probes a second to all peers together: a burst of this rate takes a tenth of a CPU, and may be needed when many paths fail. To
/// peers that have no proven path and no traffic, much fewer: a node that joins a large cluster has time.
const PROBES: u32 = 10_000;
const FIRST_PROBES: u32 = 500;
/// When the rate is used up, such a peer waits for so long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// An address is proven for so long after the last answer from there, or for so many idle intervals if that is longer.
const PROVEN: Duration = Duration::from_secs(600);
const PROVEN_INTERVALS: u32 = 5;
/// Peers that are looked at later than this wait for the next multiple of a step, so that hundreds or thousands of them do not wake
/// the agent each at its own time. Only bursts are faster; a failed path is left no later, because that takes much longer.
const STEPS: [(Duration, Duration); 2] = [
    (Duration::from_secs(2), Duration::from_millis(500)),
    (Duration::from_millis(50), Duration::from_millis(100)),
];
/// For so long the same nodes of another realm are probed at their private addresses.
const TURN: Duration = Duration::from_secs(300);

/// A peer that can be probed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Offer {
    /// The node's name.
    pub name: String,
    /// What its key makes of the name: another one after each boot of the node.
    pub identity: [u8; 8],
    /// The paths that could be used to it, each with the largest inner packet that its uplink admits, in bytes.
    pub candidates: BTreeMap<Candidate, u16>,
    /// If it was said to be in another realm, that realm: only some of its nodes are probed at private addresses, until one
    /// answers.
    pub other_realm: Option<String>,
}

/// The answer to a probe.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When it arrived.
    pub received: Instant,
    /// Whether the peer accepts data on this path.
    pub is_accepted: bool,
    /// Bytes of the probe's inner packet as they arrived at the peer.
    pub len: u16,
}

/// The path to a peer has changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The node's name.
    pub peer: String,
    /// The path that was used.
    pub from: Option<Candidate>,
    /// The path that is used now; none if the configuration decides again.
    pub to: Option<Candidate>,
    /// Why.
    pub cause: Cause,
}

/// The paths to all peers.
#[derive(Debug)]
pub struct Paths {
    /// By the peers' indexes.
    pub(super) peers: BTreeMap<u16, Box<Peer>>,
    /// When each peer is looked at next.
    queue: BTreeSet<(Instant, u16)>,
    /// What an earlier process of this boot has found.
    remembered: Uses,
    search: Search,
    /// From when on the steps in [`STEPS`] are counted.
    began: Instant,
    /// When other nodes are searched.
    turn_at: Instant,
    limit: Limit,
    first_limit: Limit,
    idle: Idle,
    /// The peers to which packets were sent lately, and some to which they were sent before that.
    active: BTreeSet<u16>,
    is_changed: bool,
}

impl Paths {
    /// No peers yet. `remembered` is what an earlier process of this boot has found.
    pub fn new(remembered: Uses, now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            queue: BTreeSet::new(),
            remembered,
            search: Search::default(),
            began: now,
            turn_at: now + TURN,
            limit: Limit::new(PROBES, now),
            first_limit: Limit::new(FIRST_PROBES, now),
            idle: Idle::new(0, 0),
            active: BTreeSet::new(),
            is_changed: false,
        }
    }

    /// Replaces the peers. What is known of those that stay is kept.
    pub fn set_offers(&mut self, offers: BTreeMap<u16, Offer>, now: Instant) {
        self.peers.retain(|id, peer| {
            let stays = offers.get(id).is_some_and(|it| it.name == peer.offer.name);
            if let (false, Some(wake)) = (stays, peer.wake) {
                self.queue.remove(&(wake, *id));
            }
            stays
        });
        let all = offers.values().map(|it| it.candidates.len()).sum();
        self.idle = Idle::new(offers.len(), all);
        self.search.set_peers(&offers);
        for (id, offer) in offers {
            let remembered = &mut self.remembered;
            let peer = self.peers.entry(id).or_insert_with(|| {
                let known = remembered.remove(&offer.name).unwrap_or_default();
                Box::new(Peer::new(offer.clone(), known, now))
            });
            peer.set_offer(offer, now);
            let may_search = self.search.includes(id);
            if peer.set_candidates(may_search, now) {
                self.touch(id, now);
            }
        }
        if !self.peers.is_empty() {
            self.remembered.clear();
        }
        self.is_changed = true;
    }

    /// Forgets what probes of public paths have shown, because this node has other addresses: what the peers accept has changed.
    pub fn forget(&mut self, now: Instant) {
        for peer in self.peers.values_mut() {
            peer.forget(now);
        }
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.touch(id, now);
        }
        self.is_changed = true;
    }

    /// Records that there are packets to a peer, also if it has no path.
    pub fn sent(&mut self, id: u16, now: Instant) {
        let peer = self.peers.get_mut(&id);
        if peer.is_some_and(|it| it.traffic.sent(now)) {
            self.active.insert(id);
            self.touch(id, now);
        }
    }

    /// Records that large ones are among them.
    pub fn sent_large(&mut self, id: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.traffic.sent_large(now);
        }
    }

    /// Whether there are no peers.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// The peer's name, if it sees this node at another address than before, or has not said for some time that it does not.
    pub fn sees(&mut self, id: u16, address: Ipv4Addr, now: Instant) -> Option<&str> {
        let peer = self.peers.get_mut(&id)?;
        peer.sees(address, now).then_some(&*peer.offer.name)
    }

    /// The peers to which packets were sent lately.
    pub fn active(&mut self, now: Instant) -> Vec<u16> {
        let peers = &self.peers;
        let is_active = |id: &u16| peers.get(id).is_some_and(|it| it.traffic.is_active(now));
        self.active.retain(is_active);
        self.active.iter().copied().collect()
    }

    /// Records that somebody says that packets to a peer were too large.
    pub fn too_large(&mut self, id: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.too_large(now);
            self.touch(id, now);
        }
    }

    /// Records the answer to the probe that was sent at a time.
    pub fn answered(&mut self, (id, number): (u16, Number), sent: Instant, answer: Answer) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let meaning = peer.answered(number, sent, answer);
        if meaning == Meaning::Nothing {
            return;
        }
        self.is_changed |= meaning == Meaning::NewAddress;
        if !number.is_public() && self.search.found(id) {
            self.search_in(self.search.group_of(id), answer.received);
        }
        match meaning {
            Meaning::Expected(next) => {
                self.wake_at(id, together(next, self.began, answer.received))
            }
            _ => self.touch(id, answer.received),
        }
    }

    /// When [`Self::run`] has something to do, if no answer arrives and nothing else changes until then.
    pub fn wake(&self) -> Option<Instant> {
        self.queue.first().map(|it| it.0)
    }

    /// Updates the peers whose time has come, and sends the probes that are due: `send` gets the peer, the candidate and the size
    /// of the inner packet, or none for the shortest, and returns when it has sent it. Returns the paths that have changed.
    pub fn run(
        &mut self,
        now: Instant,
        mut send: impl FnMut(u16, Number, Option<u16>) -> Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if now >= self.turn_at {
            self.turn_at = now + TURN;
            let others = self.search.take_turn();
            self.search_in(others, now);
        }
        while let Some((wake, id)) = self.queue.first().copied()
            && wake <= now
            && self.limit.allows(now)
        {
            self.queue.pop_first();
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            let is_active = peer.traffic.is_active(now);
            let of_search = (!is_active).then(|| self.search.pace(id)).flatten();
            let pace = Pace {
                is_active,
                idle: of_search.unwrap_or(self.idle.candidate),
                idle_in_use: self.idle.in_use,
            };
            let mut send_counted = |number, size| {
                self.limit.count();
                send(id, number, size)
            };
            if let Some(next) = peer.probe_calm(pace, now, &mut send_counted) {
                let next = together(next, self.began, now);
                peer.wake = Some(next);
                self.queue.insert((next, id));
                continue;
            }
            peer.wake = None;
            if let Some(change) = peer.update(now) {
                self.is_changed = true;
                changes.push(change);
            }
            let window = PROVEN.max(self.idle.candidate * PROVEN_INTERVALS);
            self.is_changed |= peer.forget_old(now, window);
            let is_first = !peer.has_path() && !pace.is_active;
            if is_first && !self.first_limit.allows(now) {
                peer.wake = Some(now + FIRST_WAIT);
                self.queue.insert((now + FIRST_WAIT, id));
                continue;
            }
            let mut send = |number, size| {
                if is_first {
                    self.first_limit.count();
                }
                send_counted(number, size)
            };
            peer.send_due(pace, now, &mut send);
            self.is_changed |= peer.send_sizes(pace, now, &mut send);
            let next = peer.wait(pace, now).map(|it| together(it, self.began, now));
            peer.wake = next;
            self.queue.extend(next.map(|it| (it, id)));
        }
        changes
    }

    /// Whether [`Self::take_changed`] will say so.
    pub fn has_changed(&self) -> bool {
        self.is_changed
    }

    /// Whether [`Self::uses`] may have changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// What probes have shown of each peer.
    pub fn uses(&self) -> Uses {
        let peers = self.peers.values();
        let uses = peers.map(|peer| (peer.offer.name.clone(), peer.shown()));
        let mut all = self.remembered.clone();
        all.extend(uses);
        all
    }

    /// Each peer, with why each of its candidates is used or not.
    pub fn why(&self, now: Instant) -> impl Iterator<Item = (&str, Vec<(Candidate, Reason)>)> {
        let peers = self.peers.values();
        peers.map(move |peer| (&*peer.offer.name, peer.why(now)))
    }

    /// Looks at a peer now.
    fn touch(&mut self, id: u16, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.doubt();
            self.wake_at(id, now);
        }
    }

    fn wake_at(&mut self, id: u16, at: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(wake) = peer.wake.replace(at) {
            self.queue.remove(&(wake, id));
        }
        self.queue.insert((at, id));
    }

    /// Probes these peers at private addresses, too, or no longer, as the search says.
    fn search_in(&mut self, ids: Vec<u16>, now: Instant) {
        for id in ids {
            let may_search = self.search.includes(id);
            if let Some(peer) = self.peers.get_mut(&id)
                && peer.set_candidates(may_search, now)
            {
                self.touch(id, now);
            }
        }
    }
}

/// When a peer is looked at that should be at `wake`: see [`STEPS`].
fn together(wake: Instant, began: Instant, now: Instant) -> Instant {
    let Some((_, step)) = STEPS.iter().find(|(later, _)| wake >= now + *later) else {
        return wake;
    };
    let since = wake.saturating_duration_since(began);
    began + *step * since.as_nanos().div_ceil(step.as_nanos()) as u32
}
