//! The record of traffic that the agent leaves in its state folder.

use crate::state_file;
use anyhow::{Context, Result};
use ipip_abi::PeerBytes;
use ipip_datapath::{BOOT_ID, TRAFFIC_FILE};
use nix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use std::{collections::HashMap, fs, path::Path};

const MINUTE: u64 = 60;
/// Minutes of the last hour.
const HOUR: u64 = 60;

/// Sent free and billed, received free and billed.
type Bytes = [u64; 4];

/// What the agent recorded last, of this boot. Times are seconds since then.
#[derive(Debug, Deserialize)]
pub struct TrafficRecord {
    boot: String,
    /// Since when each minute is known.
    began: u64,
    /// When the agent read the counters last.
    at: u64,
    /// The realm of this node.
    pub realm: String,
    peers: HashMap<String, Recorded>,
    /// The time at which the record was read.
    #[serde(skip)]
    now: u64,
}

#[derive(Debug, Deserialize)]
struct Recorded {
    realm: String,
    /// The index whose counters were read.
    peer: u16,
    counted: Bytes,
    total: Bytes,
    /// Bytes by the number of the minute.
    minutes: Vec<(u64, Bytes)>,
}

/// The traffic with one peer.
#[derive(Debug, Eq, PartialEq)]
pub struct Traffic {
    /// Its realm; `None` if it is not recorded.
    pub realm: Option<String>,
    /// Bytes since the boot.
    pub total: PeerBytes,
    /// Bytes in the last hour; `None` if it is not recorded.
    pub hour: Option<PeerBytes>,
}

impl TrafficRecord {
    /// Reads the record in `state_dir`; `None` if there is none of this boot.
    pub fn read(state_dir: &Path) -> Result<Option<Self>> {
        let record = state_file::read::<Self>(state_dir, TRAFFIC_FILE, "a record")?;
        let boot = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?.tv_sec() as u64;
        Ok(record.and_then(|it| it.read_in(boot.trim(), now)))
    }

    /// The record as it is read at `now`; `None` if it is of another boot than `boot`.
    fn read_in(self, boot: &str, now: u64) -> Option<Self> {
        (self.boot == boot).then_some(Self { now, ..self })
    }

    /// The traffic with a node that now has the index `peer`, and for which the maps have `counted` bytes.
    pub fn of(&self, node: &str, peer: u16, counted: PeerBytes) -> Traffic {
        let Some(recorded) = self.peers.get(node) else {
            return Traffic {
                realm: None,
                total: counted,
                hour: self.minutes().map(|_| counted),
            };
        };
        let since = match recorded.peer == peer {
            true => counted.since(recorded.counted.into()),
            false => counted,
        };
        let minute = self.now / MINUTE;
        let minutes = recorded.minutes.iter();
        let minutes = minutes.filter(|(then, _)| then + HOUR > minute);
        let hour = minutes.fold(since, |sum, (_, bytes)| sum.plus((*bytes).into()));
        Traffic {
            realm: Some(recorded.realm.clone()),
            total: since.plus(recorded.total.into()),
            hour: self.minutes().map(|_| hour),
        }
    }

    /// How many minutes of the last hour are recorded; `None` if it is not recorded, because no agent has run for so long.
    pub fn minutes(&self) -> Option<u64> {
        let is_recorded = self.now.saturating_sub(self.at) < HOUR * MINUTE;
        is_recorded.then(|| (self.now.saturating_sub(self.began) / MINUTE).min(HOUR))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A record of minute 100 in which the agent began an hour before, read at `now`. `b1` has the index 1.
    pub fn record(now: u64) -> TrafficRecord {
        let text = serde_json::json!({
            "boot": "this one",
            "began": 2400,
            "at": 6000,
            "realm": "a",
            "peers": {
                "b1": {
                    "realm": "b",
                    "peer": 1,
                    "counted": [0, 500, 0, 50],
                    "total": [7, 5000, 0, 500],
                    "minutes": [[41, [0, 100, 0, 10]], [100, [0, 20, 0, 2]]],
                },
            },
        });
        let record: TrafficRecord = serde_json::from_value(text).unwrap();
        record.read_in("this one", now).expect("of this boot")
    }

    fn bytes(tx: u64, rx: u64) -> PeerBytes {
        PeerBytes {
            tx: [0, tx],
            rx: [0, rx],
        }
    }

    #[test]
    fn what_was_counted_after_the_last_sample_is_added_to_total_and_hour() {
        let traffic = record(6030).of("b1", 1, bytes(503, 51));
        let expected = Traffic {
            realm: Some("b".into()),
            total: PeerBytes {
                tx: [7, 5003],
                rx: [0, 501],
            },
            hour: Some(bytes(123, 13)),
        };
        assert_eq!(traffic, expected);
    }

    #[test]
    fn minutes_leave_the_hour_also_while_no_agent_runs_until_nothing_is_known() {
        let hour = |now| record(now).of("b1", 1, bytes(500, 50)).hour;
        assert_eq!(hour(101 * MINUTE - 1), Some(bytes(120, 12)));
        assert_eq!(hour(101 * MINUTE), Some(bytes(20, 2)));
        assert_eq!(hour(6000 + 3599), Some(bytes(20, 2)));
        assert_eq!(hour(6000 + 3600), None);
        assert_eq!(record(6000 + 3600).minutes(), None);
    }

    #[test]
    fn counters_that_began_again_or_have_another_index_count_from_zero() {
        for (peer, counted) in [(1, bytes(4, 60)), (2, bytes(600, 600))] {
            let traffic = record(6030).of("b1", peer, counted);
            assert_eq!(traffic.hour, Some(counted.plus(bytes(120, 12))));
        }
        // A node that no sample has seen has the counters of its own index only.
        let new = record(6030).of("c1", 1, bytes(9, 9));
        assert_eq!(
            (new.realm, new.total, new.hour),
            (None, bytes(9, 9), Some(bytes(9, 9)))
        );
    }

    #[test]
    fn a_record_of_another_boot_is_none_and_one_that_began_late_says_so() {
        let text = r#"{"boot": "b", "began": 10, "at": 70, "realm": "", "peers": {}}"#;
        let record = || serde_json::from_str::<TrafficRecord>(text).unwrap();
        assert!(record().read_in("c", 80).is_none());
        assert_eq!(record().read_in("b", 80).unwrap().minutes(), Some(1));
    }

    #[test]
    fn without_a_file_there_is_no_record() {
        let folder = tempfile::tempdir().unwrap();
        assert!(TrafficRecord::read(folder.path()).unwrap().is_none());
        fs::write(folder.path().join(TRAFFIC_FILE), "{").unwrap();
        let error = TrafficRecord::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("is not a record"), "{error}");
    }
}
