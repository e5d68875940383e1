//! One peer: its candidates, the path in use, and what was sent to it.

use crate::paths::{
    activity::Activity,
    candidate::Candidate,
    history::History,
    mtu::PathMtu,
    peers::{Answer, Change, Offer},
    schedule::{Calm, Pace, due, wake},
    select::{Candidates, Cause, Selection, first},
    uses::Use,
    why::{Reason, why},
};
use ipip_abi::Candidate as Number;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// A private path that has not answered for so long, while no other one works, is given up: another machine may have the
/// address.
const GIVEN_UP: Duration = Duration::from_secs(30);
/// After this time, it is passed on again where a peer sees this node.
const SEEN: Duration = Duration::from_secs(10);

/// A peer that is probed.
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
    /// Where it sees this node, and when that was passed on.
    seen: Option<(Ipv4Addr, Instant)>,
    pub(super) traffic: Activity,
    /// Set while only the path in use is probed.
    calm: Option<Calm>,
    /// When it is looked at next, as the queue has it.
    pub(super) wake: Option<Instant>,
}

/// What the answer to a probe was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Meaning {
    /// Of an unknown probe, or one that was answered already.
    Nothing,
    /// The path in use works, as before: the peer is looked at next at this time.
    Expected(Instant),
    /// Something else: the peer is looked at now.
    News,
    /// The same, from an address that had not answered before.
    NewAddress,
}

impl Peer {
    pub(super) fn new(offer: Offer, known: Use, now: Instant) -> Self {
        let path = known.path.filter(|it| offer.candidates.contains_key(it));
        let mtu = path.map(|path| path_mtu(&offer, path, known.mtu));
        Self {
            offer,
            candidates: Candidates::new(),
            selection: path.map(|path| Selection::new(path, now)),
            mtu,
            full_size: None,
            proven: known.proven.into_iter().map(|it| (it, now)).collect(),
            seen: None,
            traffic: Activity::default(),
            calm: None,
            wake: None,
        }
    }

    pub(super) fn set_offer(&mut self, offer: Offer, now: Instant) {
        if offer.identity != self.offer.identity {
            for history in self.candidates.values_mut() {
                **history = History::new(now);
            }
            let path = self.selection.as_ref().map(|it| it.path);
            self.selection = path.map(|path| Selection::new(path, now));
            self.proven
                .retain(|it, _| path.is_some_and(|path| path.address == *it));
        }
        self.offer = offer;
        self.calm = None;
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
    pub(super) fn set_candidates(&mut self, may_search: bool, now: Instant) -> bool {
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
            .extend(new.into_iter().map(|it| (it, Box::new(History::new(now)))));
        has_lost || has_new
    }

    /// Takes the answer to the probe of a candidate that was sent at a time.
    pub(super) fn answered(&mut self, number: Number, sent: Instant, answer: Answer) -> Meaning {
        let Answer {
            received,
            is_accepted,
            len,
        } = answer;
        if self.takes_answer_of_size(number, sent, received, len) {
            return Meaning::News;
        }
        let found = self.candidates.iter_mut().find(|it| it.0.number == number);
        let Some((candidate, history)) = found else {
            return Meaning::Nothing;
        };
        if !history.answered(sent, received, is_accepted) {
            return Meaning::Nothing;
        }
        let in_use = self.selection.as_ref().map(|it| it.path);
        let calm = self
            .calm
            .filter(|_| is_accepted && in_use == Some(*candidate));
        // Without an outer header there is no outer source.
        let before = match number {
            Number::Direct => Some(received),
            _ => self.proven.insert(candidate.address, received),
        };
        match (before, calm) {
            (None, _) => Meaning::NewAddress,
            (Some(_), Some(calm)) if history.misses(received) == 0 => {
                Meaning::Expected(calm.wake(history, received))
            }
            (Some(_), _) => Meaning::News,
        }
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
                self.calm = None;
            }
            _ => {}
        }
        false
    }

    /// Sends the probes that show whether the candidates work. On the path in use they have the full size while the traffic has,
    /// until one is missing.
    pub(super) fn send_due(
        &mut self,
        pace: Pace,
        now: Instant,
        send: &mut impl FnMut(Number, Option<u16>) -> Instant,
    ) {
        let due: Vec<Candidate> =
            due(self.selection.as_ref(), &self.candidates, pace, now).collect();
        for candidate in due {
            self.send_probe(candidate, now, send);
        }
    }

    fn send_probe(
        &mut self,
        candidate: Candidate,
        now: Instant,
        send: &mut impl FnMut(Number, Option<u16>) -> Instant,
    ) {
        let in_use = self.selection.as_ref().map(|it| it.path);
        let Some(history) = self.candidates.get_mut(&candidate) else {
            return;
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

    /// Probes the path in use if nothing else is to be done, and says when to look at the peer again.
    pub(super) fn probe_calm(
        &mut self,
        pace: Pace,
        now: Instant,
        send: &mut impl FnMut(Number, Option<u16>) -> Instant,
    ) -> Option<Instant> {
        let mut calm = self.calm.take()?;
        let path = self.selection.as_ref()?.path;
        let misses = self.candidates.get(&path)?.misses(now);
        if calm.others <= now || misses > 0 || !pace.is_active {
            return None;
        }
        let is_due = calm.probe <= now;
        if is_due {
            self.send_probe(path, now, send);
        }
        let history = self.candidates.get(&path)?;
        if is_due {
            calm.probed(self.selection.as_ref()?, history, pace, now);
        }
        self.calm = Some(calm);
        Some(calm.wake(history, now))
    }

    /// Sends the probes that search the MTU of the path in use. Returns whether it is another one now.
    pub(super) fn send_sizes(
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

    /// Records where the peer sees this node. Whether that is to be passed on.
    pub(super) fn sees(&mut self, address: Ipv4Addr, now: Instant) -> bool {
        let is_known = |(it, at): (Ipv4Addr, Instant)| {
            it == address && now.saturating_duration_since(at) < SEEN
        };
        let is_new = !self.seen.is_some_and(is_known);
        if is_new {
            self.seen = Some((address, now));
        }
        is_new
    }

    /// Whether a path to it has proven to work.
    pub(super) fn has_path(&self) -> bool {
        self.selection.is_some()
    }

    /// Lets everything be looked at when it is looked at next.
    pub(super) fn doubt(&mut self) {
        self.calm = None;
    }

    /// Decides how it is looked at until [`Self::wake`], which is the result.
    pub(super) fn wait(&mut self, pace: Pace, now: Instant) -> Option<Instant> {
        let sizes = self.mtu.as_ref().and_then(|it| it.wake(pace.is_active));
        let calm = self.selection.as_ref();
        let calm = calm.and_then(|it| Calm::find(it, &self.candidates, pace, now));
        self.calm = calm.map(|it| Calm {
            others: sizes.map_or(it.others, |sizes| sizes.min(it.others)),
            ..it
        });
        let probes = wake(self.selection.as_ref(), &self.candidates, pace, now);
        probes.into_iter().chain(sizes).min()
    }

    /// What probes have shown.
    pub(super) fn shown(&self) -> Use {
        Use {
            path: self.selection.as_ref().map(|it| it.path),
            mtu: self.mtu.as_ref().map(PathMtu::current),
            proven: self.proven.keys().copied().collect(),
        }
    }

    /// Why each candidate is used or not.
    pub(super) fn why(&self, now: Instant) -> Vec<(Candidate, Reason)> {
        let mut reasons: Vec<_> = why(self.selection.as_ref(), &self.candidates, now).collect();
        let left_out = self.offer.candidates.keys();
        let left_out = left_out.filter(|it| !self.candidates.contains_key(*it));
        reasons.extend(left_out.map(|it| (*it, Reason::NotSearched)));
        reasons.sort_by_key(|(it, _)| it.rank());
        reasons
    }

    /// Records that somebody says that packets were too large.
    pub(super) fn too_large(&mut self, now: Instant) {
        if let Some(mtu) = &mut self.mtu {
            mtu.doubt(now);
        }
    }

    /// Forgets what probes of public paths have shown.
    pub(super) fn forget(&mut self, now: Instant) {
        if self
            .selection
            .as_ref()
            .is_some_and(|it| it.path.is_public())
        {
            self.selection = None;
            self.mtu = None;
        }
        for history in self.candidates.values_mut() {
            **history = History::new(now);
        }
    }

    pub(super) fn update(&mut self, now: Instant) -> Option<Change> {
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
    pub(super) fn forget_old(&mut self, now: Instant, time: Duration) -> bool {
        let before = self.proven.len();
        let in_use = self.selection.as_ref().map(|it| it.path.address);
        let is_old = |at: Instant| now.saturating_duration_since(at) > time;
        self.proven
            .retain(|address, at| Some(*address) == in_use || !is_old(*at));
        self.proven.len() != before
    }
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
