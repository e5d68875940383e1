//! The paths to all peers.

use crate::paths::{
    activity::Activity,
    candidate::Candidate,
    history::History,
    idle::Idle,
    limit::Limit,
    mtu::PathMtu,
    schedule::{Pace, due, wake},
    search::Search,
    select::{Candidates, Cause, Selection, first},
    uses::{Use, Uses},
    why::{Reason, why},
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
/// the agent each at its own time.
const STEPS: [(Duration, Duration); 2] = [
    (Duration::from_secs(2), Duration::from_millis(500)),
    (Duration::from_millis(500), Duration::from_millis(50)),
];
/// A private path that has not answered for so long, while no other one works, is given up: another machine may have the
/// address.
const GIVEN_UP: Duration = Duration::from_secs(30);
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
    pub(super) peers: BTreeMap<u16, Peer>,
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

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) offer: Offer,
    candidates: Candidates,
    selection: Option<Selection>,
    /// Of the path in use.
    mtu: Option<PathMtu>,
    /// When the last probe of full size was sent that has no answer yet.
    full_size: Option<Instant>,
    /// When an answer came from this address last.
    proven: BTreeMap<Ipv4Addr, Instant>,
    traffic: Activity,
    wake: Option<Instant>,
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
                Peer::new(offer.clone(), known, now)
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
            let is_public = |it: &Selection| it.path.is_public();
            if peer.selection.as_ref().is_some_and(is_public) {
                peer.selection = None;
                peer.mtu = None;
            }
            for history in peer.candidates.values_mut() {
                *history = History::new(now);
            }
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

    /// The node that has an index.
    pub fn peer_name(&self, id: u16) -> Option<&str> {
        Some(&self.peers.get(&id)?.offer.name)
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
        if let Some(mtu) = self.peers.get_mut(&id).and_then(|it| it.mtu.as_mut()) {
            mtu.doubt(now);
            self.touch(id, now);
        }
    }

    /// Records the answer to the probe that was sent at a time.
    pub fn answered(&mut self, (id, number): (u16, Number), sent: Instant, answer: Answer) {
        let Answer {
            received,
            is_accepted,
            len,
        } = answer;
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.takes_answer_of_size(number, sent, received, len) {
            self.touch(id, received);
            return;
        }
        let found = peer.candidates.iter_mut().find(|it| it.0.number == number);
        let Some((candidate, history)) = found else {
            return;
        };
        if !history.answered(sent, received, is_accepted) {
            return;
        }
        // Without an outer header there is no outer source.
        if number != Number::Direct {
            let before = peer.proven.insert(candidate.address, received);
            self.is_changed |= before.is_none();
        }
        if !candidate.is_public() && self.search.found(id) {
            self.search_in(self.search.group_of(id), received);
        }
        self.touch(id, received);
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
            let idle = self.idle;
            let Some(peer) = self.peers.get_mut(&id) else {
                continue;
            };
            peer.wake = None;
            if let Some(change) = peer.update(now) {
                self.is_changed = true;
                changes.push(change);
            }
            let window = PROVEN.max(idle.candidate * PROVEN_INTERVALS);
            self.is_changed |= peer.forget_old(now, window);
            let is_active = peer.traffic.is_active(now);
            let of_search = (!is_active).then(|| self.search.pace(id)).flatten();
            let pace = Pace {
                is_active,
                idle: of_search.unwrap_or(idle.candidate),
                idle_in_use: idle.in_use,
            };
            let is_first = peer.selection.is_none() && !pace.is_active;
            if is_first && !self.first_limit.allows(now) {
                peer.wake = Some(now + FIRST_WAIT);
                self.queue.insert((now + FIRST_WAIT, id));
                continue;
            }
            let mut send = |number, size| {
                self.limit.count();
                if is_first {
                    self.first_limit.count();
                }
                send(id, number, size)
            };
            peer.send_due(pace, now, &mut send);
            self.is_changed |= peer.send_sizes(pace, now, &mut send);
            let next = peer.wake(pace, now).map(|it| together(it, self.began, now));
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
        let uses = peers.map(|peer| {
            let shown = Use {
                path: peer.selection.as_ref().map(|it| it.path),
                mtu: peer.mtu.as_ref().map(PathMtu::current),
                proven: peer.proven.keys().copied().collect(),
            };
            (peer.offer.name.clone(), shown)
        });
        let mut all = self.remembered.clone();
        all.extend(uses);
        all
    }

    /// Each peer, with why each of its candidates is used or not.
    pub fn why(&self, now: Instant) -> impl Iterator<Item = (&str, Vec<(Candidate, Reason)>)> {
        self.peers.values().map(move |peer| {
            let mut reasons: Vec<_> = why(peer.selection.as_ref(), &peer.candidates, now).collect();
            let left_out = peer.offer.candidates.keys();
            let left_out = left_out.filter(|it| !peer.candidates.contains_key(*it));
            reasons.extend(left_out.map(|it| (*it, Reason::NotSearched)));
            reasons.sort_by_key(|(it, _)| it.rank());
            (&*peer.offer.name, reasons)
        })
    }

    /// Looks at a peer now.
    fn touch(&mut self, id: u16, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(wake) = peer.wake.replace(now) {
            self.queue.remove(&(wake, id));
        }
        self.queue.insert((now, id));
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

impl Peer {
    fn new(offer: Offer, known: Use, now: Instant) -> Self {
        let path = known.path.filter(|it| offer.candidates.contains_key(it));
        let mtu = path.map(|path| path_mtu(&offer, path, known.mtu));
        Self {
            offer,
            candidates: Candidates::new(),
            selection: path.map(|path| Selection::new(path, now)),
            mtu,
            full_size: None,
            proven: known.proven.into_iter().map(|it| (it, now)).collect(),
            traffic: Activity::default(),
            wake: None,
        }
    }

    fn set_offer(&mut self, offer: Offer, now: Instant) {
        if offer.identity != self.offer.identity {
            for history in self.candidates.values_mut() {
                *history = History::new(now);
            }
            let path = self.selection.as_ref().map(|it| it.path);
            self.selection = path.map(|path| Selection::new(path, now));
            self.proven
                .retain(|it, _| path.is_some_and(|path| path.address == *it));
        }
        self.offer = offer;
        // The uplink admits another size.
        let path = self.selection.as_ref().map(|it| it.path);
        let limit = path.and_then(|it| self.offer.candidates.get(&it));
        if let (Some(path), Some(limit), Some(mtu)) = (path, limit, &self.mtu)
            && *limit != mtu.limit()
        {
            self.mtu = Some(path_mtu(&self.offer, path, None));
        }
    }

    /// Whether the candidates have changed. Private ones of another realm are left out unless they are searched or in use.
    fn set_candidates(&mut self, may_search: bool, now: Instant) -> bool {
        // The uplink is gone for a moment, for example while it gets its address again.
        if self.offer.candidates.is_empty() {
            return false;
        }
        let before = self.candidates.len();
        let has_all = may_search || self.offer.other_realm.is_none();
        let in_use = self.selection.as_ref().map(|it| it.path);
        let wanted = self.offer.candidates.keys();
        let wanted: BTreeSet<Candidate> = wanted
            .filter(|it| has_all || it.is_public() || Some(**it) == in_use)
            .copied()
            .collect();
        self.candidates.retain(|it, _| wanted.contains(it));
        let has_lost = self.candidates.len() != before;
        let is_new = |it: &&Candidate| !self.candidates.contains_key(*it);
        let new: Vec<Candidate> = wanted.iter().filter(is_new).copied().collect();
        let has_new = !new.is_empty();
        self.candidates
            .extend(new.into_iter().map(|it| (it, History::new(now))));
        has_lost || has_new
    }

    /// Takes an answer that shows something of the MTU, and returns whether it shows nothing else.
    fn takes_answer_of_size(
        &mut self,
        number: Number,
        sent: Instant,
        received: Instant,
        len: u16,
    ) -> bool {
        let in_use = self.selection.as_ref().map(|it| it.path.number);
        let Some(mtu) = self.mtu.as_mut().filter(|_| in_use == Some(number)) else {
            return false;
        };
        if mtu.answered(sent, len) {
            return true;
        }
        match self.full_size {
            Some(at) if at == sent => self.full_size = None,
            // A later one was answered, which is short.
            Some(at) if at < sent => {
                self.full_size = None;
                mtu.doubt(received);
            }
            _ => {}
        }
        false
    }

    /// Sends the probes that show whether the candidates work. On the path in use they have the full size while the traffic has,
    /// until one is missing.
    fn send_due(
        &mut self,
        pace: Pace,
        now: Instant,
        send: &mut impl FnMut(Number, Option<u16>) -> Instant,
    ) {
        let in_use = self.selection.as_ref().map(|it| it.path);
        let due: Vec<Candidate> =
            due(self.selection.as_ref(), &self.candidates, pace, now).collect();
        for candidate in due {
            let Some(history) = self.candidates.get_mut(&candidate) else {
                continue;
            };
            let is_full =
                in_use == Some(candidate) && self.traffic.is_large(now) && history.misses(now) == 0;
            let size = self.mtu.as_ref().filter(|_| is_full);
            let at = send(candidate.number, size.map(PathMtu::current));
            history.sent(at);
            if is_full {
                self.full_size = Some(at);
            }
        }
    }

    /// Sends the probes that search the MTU of the path in use. Returns whether it is another one now.
    fn send_sizes(
        &mut self,
        pace: Pace,
        now: Instant,
        send: &mut impl FnMut(Number, Option<u16>) -> Instant,
    ) -> bool {
        let (Some(selection), Some(mtu)) = (&self.selection, &mut self.mtu) else {
            return false;
        };
        let Some(history) = self.candidates.get(&selection.path) else {
            return false;
        };
        if pace.is_active {
            mtu.need(now);
        }
        let before = mtu.current();
        for size in mtu.due(now, history.patience(), pace.is_active) {
            let at = send(selection.path.number, Some(size));
            mtu.sent(at, size);
        }
        mtu.current() != before
    }

    /// When to look at it again.
    fn wake(&self, pace: Pace, now: Instant) -> Option<Instant> {
        let probes = wake(self.selection.as_ref(), &self.candidates, pace, now);
        let sizes = self.mtu.as_ref().and_then(|it| it.wake(pace.is_active));
        probes.into_iter().chain(sizes).min()
    }

    fn update(&mut self, now: Instant) -> Option<Change> {
        let from = self.selection.as_ref().map(|it| it.path);
        let cause = match &mut self.selection {
            None => {
                self.selection = Some(Selection::new(first(&self.candidates, now)?, now));
                Cause::First
            }
            Some(selection) if !self.candidates.contains_key(&selection.path) => {
                let first = first(&self.candidates, now);
                self.selection = first.map(|it| Selection::new(it, now));
                Cause::Gone
            }
            Some(selection) => match selection.update(&self.candidates, now) {
                Some(cause) => cause,
                None if !is_given_up(selection, &self.candidates, now) => return None,
                None => {
                    self.selection = None;
                    Cause::Dead
                }
            },
        };
        let to = self.selection.as_ref().map(|it| it.path);
        self.mtu = to.map(|path| path_mtu(&self.offer, path, None));
        self.full_size = None;
        Some(Change {
            peer: self.offer.name.clone(),
            from,
            to,
            cause,
        })
    }

    /// Forgets addresses from which no answer has come for this time. Whether there were any.
    fn forget_old(&mut self, now: Instant, time: Duration) -> bool {
        let before = self.proven.len();
        let in_use = self.selection.as_ref().map(|it| it.path.address);
        let is_old = |at: Instant| now.saturating_duration_since(at) > time;
        self.proven
            .retain(|address, at| Some(*address) == in_use || !is_old(*at));
        self.proven.len() != before
    }
}

/// When a peer is looked at that should be at `wake`: see [`STEPS`].
fn together(wake: Instant, began: Instant, now: Instant) -> Instant {
    let Some((_, step)) = STEPS.iter().find(|(later, _)| wake >= now + *later) else {
        return wake;
    };
    let since = wake.saturating_duration_since(began);
    began + *step * since.as_millis().div_ceil(step.as_millis()) as u32
}

fn path_mtu(offer: &Offer, path: Candidate, known: Option<u16>) -> PathMtu {
    let limit = offer.candidates.get(&path).copied().unwrap_or_default();
    PathMtu::new(limit, path.number.encapsulation(), path.is_public(), known)
}

fn is_given_up(selection: &Selection, candidates: &Candidates, now: Instant) -> bool {
    if selection.path.is_public() {
        return false;
    }
    let Some(history) = candidates.get(&selection.path) else {
        return false;
    };
    let last = history.last_answered().unwrap_or(selection.since);
    history.is_dead(now) && now.saturating_duration_since(last) >= GIVEN_UP
}
