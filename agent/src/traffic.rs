//! The traffic with each peer: in total, and in each minute of the last hour. Pure.

use ipip_abi::PeerBytes;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

const MINUTE: u64 = 60;
/// Minutes that are kept.
const KEPT: u64 = 60;

/// [`PeerBytes`] as a file has them: sent free and billed, received free and billed.
type Bytes = [u64; 4];

/// The counters of a peer.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The peer's name.
    pub node: &'a str,
    /// Its realm.
    pub realm: &'a str,
    /// Its index in the maps, which another node can have after it.
    pub peer: u16,
    /// What the maps have counted. It begins again at zero for another index, and for another ABI version.
    pub counted: PeerBytes,
}

/// What was recorded since the boot. Times are seconds since then.
#[derive(Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Since when each minute is known.
    began: u64,
    /// When the counters were read last; `None` if never.
    at: Option<u64>,
    /// The realm of this node.
    realm: String,
    /// By the names of the nodes, because an index is another node's later.
    peers: BTreeMap<String, Traffic>,
}

#[derive(Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Traffic {
    realm: String,
    /// The index whose counters were read last; 0 if the node is no peer now.
    peer: u16,
    /// What they were.
    counted: Bytes,
    total: Bytes,
    /// The minutes with traffic, by their number since the boot.
    minutes: VecDeque<(u64, Bytes)>,
}

impl History {
    /// When the counters were read last.
    pub fn at(&self) -> Option<u64> {
        self.at
    }

    /// Adds what the peers of this node, whose realm is `realm`, have exchanged until `now`. What was counted before the first
    /// sample, or while nothing was recorded for an hour, belongs to no minute.
    pub fn record<'a>(
        &mut self,
        now: u64,
        realm: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let minute = now / MINUTE;
        let is_continued = self
            .at
            .is_some_and(|at| now.saturating_sub(at) < KEPT * MINUTE);
        if !is_continued {
            self.began = now;
        }
        self.at = Some(now);
        realm.clone_into(&mut self.realm);
        let mut before = mem::take(&mut self.peers);
        for sample in samples {
            let mut traffic = before.remove(sample.node).unwrap_or_default();
            let new = traffic.count(&sample);
            if is_continued {
                traffic.add(minute, new);
            }
            traffic.forget(minute);
            self.peers.insert(sample.node.to_owned(), traffic);
        }
        // A node that is no peer for a moment keeps its record.
        for (node, mut traffic) in before {
            traffic.peer = 0;
            traffic.forget(minute);
            if !traffic.minutes.is_empty() {
                self.peers.insert(node, traffic);
            }
        }
    }
}

impl Traffic {
    /// Takes the counters, and returns what they have counted since the last ones.
    fn count(&mut self, sample: &Sample) -> PeerBytes {
        let new = match self.peer == sample.peer {
            true => sample.counted.since(self.counted.into()),
            false => sample.counted,
        };
        sample.realm.clone_into(&mut self.realm);
        self.peer = sample.peer;
        self.counted = sample.counted.into();
        self.total = new.plus(self.total.into()).into();
        new
    }

    fn add(&mut self, minute: u64, new: PeerBytes) {
        if new == PeerBytes::default() {
            return;
        }
        match self.minutes.back_mut() {
            // An agent that was restarted.
            Some((last, bytes)) if *last == minute => *bytes = new.plus((*bytes).into()).into(),
            _ => self.minutes.push_back((minute, new.into())),
        }
    }

    /// Removes the minutes that are too old.
    fn forget(&mut self, minute: u64) {
        self.minutes.retain(|(then, _)| then + KEPT > minute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = KEPT * MINUTE;

    fn bytes(tx: u64, rx: u64) -> PeerBytes {
        PeerBytes {
            tx: [tx, 0],
            rx: [0, rx],
        }
    }

    fn sample(node: &str, peer: u16, counted: PeerBytes) -> Sample<'_> {
        Sample {
            node,
            realm: "b",
            peer,
            counted,
        }
    }

    /// A history whose first sample, at second 60, had nothing counted for b1 with the index 1.
    fn begun() -> History {
        let mut history = History::default();
        history.record(60, "a", [sample("b1", 1, bytes(0, 0))]);
        history
    }

    fn total(history: &History, node: &str) -> PeerBytes {
        history.peers[node].total.into()
    }

    /// The sum of all minutes that are kept.
    fn hour(history: &History, node: &str) -> PeerBytes {
        let minutes = history.peers[node].minutes.iter();
        minutes.fold(PeerBytes::default(), |sum, (_, it)| sum.plus((*it).into()))
    }

    #[test]
    fn each_minute_has_what_was_counted_in_it_and_is_kept_for_an_hour() {
        let mut history = begun();
        for minute in 2..=200 {
            let counted = bytes(minute - 1, 10 * (minute - 1));
            history.record(minute * MINUTE, "a", [sample("b1", 1, counted)]);
            let kept = (minute - 1).min(KEPT);
            assert_eq!(hour(&history, "b1"), bytes(kept, 10 * kept), "{minute}");
            assert_eq!(total(&history, "b1"), counted);
            assert!(history.peers["b1"].minutes.len() as u64 <= KEPT);
        }
        // Without traffic the last minute leaves, too, and takes no room before.
        let counted = bytes(199, 1990);
        history.record(200 * MINUTE + HOUR - 1, "a", [sample("b1", 1, counted)]);
        assert_eq!(hour(&history, "b1"), bytes(1, 10));
        history.record(200 * MINUTE + HOUR, "a", [sample("b1", 1, counted)]);
        assert!(history.peers["b1"].minutes.is_empty());
        assert_eq!(total(&history, "b1"), counted);
    }

    #[test]
    fn what_was_counted_before_the_first_sample_is_in_the_total_only() {
        let mut history = History::default();
        history.record(5000, "a", [sample("b1", 1, bytes(700, 0))]);
        assert_eq!(total(&history, "b1"), bytes(700, 0));
        assert_eq!(hour(&history, "b1"), bytes(0, 0));
        assert_eq!((history.began, history.at()), (5000, Some(5000)));
        history.record(5060, "a", [sample("b1", 1, bytes(705, 0))]);
        assert_eq!(hour(&history, "b1"), bytes(5, 0));
        assert_eq!(history.began, 5000);
    }

    #[test]
    fn a_restart_continues_the_file_but_not_after_an_hour_without_an_agent() {
        let mut history = begun();
        history.record(120, "a", [sample("b1", 1, bytes(3, 0))]);
        let text = serde_json::to_string(&history).unwrap();
        let read = || serde_json::from_str::<History>(&text).unwrap();
        assert_eq!(read(), history);
        // A sample in the same minute takes no further room.
        let mut soon = read();
        soon.record(125, "a", [sample("b1", 1, bytes(10, 0))]);
        assert_eq!(hour(&soon, "b1"), bytes(10, 0));
        assert_eq!(soon.peers["b1"].minutes.len(), 1);
        let mut late = read();
        late.record(120 + HOUR, "a", [sample("b1", 1, bytes(10, 0))]);
        assert_eq!(hour(&late, "b1"), bytes(0, 0));
        assert_eq!(total(&late, "b1"), bytes(10, 0));
        assert_eq!(late.began, 120 + HOUR);
    }

    #[test]
    fn counters_that_begin_again_add_what_they_have_counted_since() {
        let mut history = begun();
        history.record(120, "a", [sample("b1", 1, bytes(1000, 1000))]);
        // Another ABI version has taken over.
        history.record(180, "a", [sample("b1", 1, bytes(7, 2))]);
        assert_eq!(total(&history, "b1"), bytes(1007, 1002));
        assert_eq!(hour(&history, "b1"), bytes(1007, 1002));
        // Another index, whose counters are already beyond the last ones.
        history.record(240, "a", [sample("b1", 2, bytes(50, 50))]);
        assert_eq!(total(&history, "b1"), bytes(1057, 1052));
    }

    #[test]
    fn a_node_with_the_index_of_another_one_has_only_its_own_traffic() {
        let mut history = begun();
        history.record(120, "a", [sample("b1", 1, bytes(1000, 0))]);
        history.record(180, "a", [sample("c1", 1, bytes(4, 0))]);
        assert_eq!(total(&history, "c1"), bytes(4, 0));
        assert_eq!(hour(&history, "c1"), bytes(4, 0));
        assert_eq!(history.peers["c1"].realm, "b");
    }

    #[test]
    fn a_node_that_is_gone_for_a_moment_keeps_its_record_and_is_forgotten_after_an_hour() {
        let mut history = begun();
        history.record(120, "a", [sample("b1", 1, bytes(1000, 0))]);
        history.record(180, "a", []);
        assert_eq!(hour(&history, "b1"), bytes(1000, 0));
        let text = serde_json::to_string(&history).unwrap();
        // It has the same index again, whose counters began at zero.
        history.record(240, "a", [sample("b1", 1, bytes(1500, 0))]);
        assert_eq!(total(&history, "b1"), bytes(2500, 0));
        let mut history: History = serde_json::from_str(&text).unwrap();
        history.record(120 + HOUR, "a", []);
        assert!(history.peers.is_empty());
    }
}
