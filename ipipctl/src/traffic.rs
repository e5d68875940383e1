//! `ipipctl traffic`: the bytes exchanged with each peer and between realms, free and billed.

use crate::{
    output::{self, Format},
    rows::{MapRow, PeerInfoRow, PeerTrafficRow},
    traffic_record::{Traffic, TrafficRecord},
};
use anyhow::Result;
use ipip_abi::{PeerBytes, PeerInfo, PeerTraffic};
use ipip_datapath::Maps;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

/// The traffic of this node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    node: Option<String>,
    /// `null` if the agent has recorded none.
    realm: Option<String>,
    /// Minutes of the last hour that are recorded.
    recorded_minutes: Option<u64>,
    peers: Vec<PeerView>,
    realm_pairs: Vec<PairView>,
}

/// The traffic with one peer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PeerView {
    node: String,
    realm: Option<String>,
    #[serde(flatten)]
    bytes: BytesView,
}

/// The traffic of this node, whose realm is `realm`, with all peers of a realm.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PairView {
    realm: String,
    peer_realm: String,
    #[serde(flatten)]
    bytes: BytesView,
}

/// Bytes on the wire, with the outer headers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BytesView {
    tx_free: u64,
    tx_billed: u64,
    rx_free: u64,
    rx_billed: u64,
    hour_tx_free: Option<u64>,
    hour_tx_billed: Option<u64>,
    hour_rx_free: Option<u64>,
    hour_rx_billed: Option<u64>,
}

/// The traffic of all peers, with what the agent has recorded.
pub fn traffic(maps: &Maps, record: Option<TrafficRecord>, format: Format) -> Result<String> {
    let view = view(
        &PeerInfoRow::read(maps)?,
        &PeerTrafficRow::read(maps)?,
        record.as_ref(),
    );
    match format {
        Format::Json => output::json(&view),
        Format::Table => text(&view),
    }
}

fn view(
    info: &[(u16, PeerInfo)],
    traffic: &[(u16, PeerTraffic)],
    record: Option<&TrafficRecord>,
) -> View {
    let counted: HashMap<u16, PeerBytes> = traffic.iter().map(|(id, it)| (*id, it.bytes)).collect();
    let of_peer = |(id, info): &(u16, PeerInfo)| {
        let counted = counted.get(id).copied().unwrap_or_default();
        let traffic = match record {
            Some(record) => record.of(info.name(), *id, counted),
            None => Traffic {
                realm: None,
                total: counted,
                hour: None,
            },
        };
        (info.name().to_owned(), traffic)
    };
    let peers = info.iter().filter(|(id, _)| *id != 0).map(of_peer);
    let peers: Vec<(String, Traffic)> = peers.collect();
    let own = info.iter().find(|(id, _)| *id == 0);
    View {
        node: own.map(|(_, info)| info.name().to_owned()),
        realm: record.map(|it| it.realm.clone()),
        recorded_minutes: record.and_then(TrafficRecord::minutes),
        realm_pairs: record.map_or_else(Vec::new, |it| pairs(&it.realm, &peers)),
        peers: peers
            .into_iter()
            .map(|(node, traffic)| PeerView {
                node,
                bytes: BytesView::new(traffic.total, traffic.hour),
                realm: traffic.realm,
            })
            .collect(),
    }
}

/// The sums of the peers of each realm. A peer whose realm is not recorded yet is in none.
fn pairs(own: &str, peers: &[(String, Traffic)]) -> Vec<PairView> {
    let mut sums: BTreeMap<&str, (PeerBytes, Option<PeerBytes>)> = BTreeMap::new();
    for (_, traffic) in peers {
        let Some(realm) = &traffic.realm else {
            continue;
        };
        let (total, hour) = sums.entry(realm).or_default();
        *total = total.plus(traffic.total);
        *hour = traffic.hour.map(|it| hour.unwrap_or_default().plus(it));
    }
    let sums = sums.into_iter();
    sums.map(|(realm, (total, hour))| PairView {
        realm: own.to_owned(),
        peer_realm: realm.to_owned(),
        bytes: BytesView::new(total, hour),
    })
    .collect()
}

impl BytesView {
    fn new(total: PeerBytes, hour: Option<PeerBytes>) -> Self {
        Self {
            tx_free: total.tx[0],
            tx_billed: total.tx[1],
            rx_free: total.rx[0],
            rx_billed: total.rx[1],
            hour_tx_free: hour.map(|it| it.tx[0]),
            hour_tx_billed: hour.map(|it| it.tx[1]),
            hour_rx_free: hour.map(|it| it.rx[0]),
            hour_rx_billed: hour.map(|it| it.rx[1]),
        }
    }
}

fn text(view: &View) -> Result<String> {
    let mut text = output::table(&view.peers)?;
    if !view.realm_pairs.is_empty() {
        write!(text, "\n{}", output::table(&view.realm_pairs)?)?;
    }
    if let Some(note) = note(view) {
        writeln!(text, "\n{note}")?;
    }
    Ok(text)
}

/// What is not known of realms and of the last hour.
fn note(view: &View) -> Option<String> {
    match (&view.realm, view.recorded_minutes) {
        (None, _) => Some(
            "Totals only: no agent has recorded realms and the last hour since the boot (correct --state-dir, or start ipip-agent)".into(),
        ),
        (Some(_), None) => {
            Some("Totals only: no agent has recorded traffic in the last hour".into())
        }
        (Some(_), Some(60..)) => None,
        (Some(_), Some(minutes)) => {
            Some(format!("The last hour: the agent has recorded {minutes} minutes of it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testdata, traffic_record::tests::record};

    fn counted() -> [(u16, PeerTraffic); 2] {
        let traffic = |tx, rx| PeerTraffic {
            bytes: PeerBytes { tx, rx },
            ..PeerTraffic::default()
        };
        [
            (1, traffic([0, 501], [0, 52])),
            (2, traffic([90, 0], [80, 0])),
        ]
    }

    #[test]
    fn each_peer_and_each_realm_pair_has_a_row_with_free_and_billed_bytes() {
        let view = view(&testdata::peer_info(), &counted(), Some(&record(6030)));
        let expected = "\
NODE  REALM  TX FREE  TX BILLED  RX FREE  RX BILLED  HOUR TX FREE  HOUR TX BILLED  HOUR RX FREE  HOUR RX BILLED
b1    b            7       5001        0        502             0             121             0              14
c1    -           90          0       80          0            90               0            80               0

REALM  PEER REALM  TX FREE  TX BILLED  RX FREE  RX BILLED  HOUR TX FREE  HOUR TX BILLED  HOUR RX FREE  HOUR RX BILLED
a      b                 7       5001        0        502             0             121             0              14
";
        assert_eq!(text(&view).unwrap(), expected);
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!((&json["node"], &json["realm"]), (&"a1".into(), &"a".into()));
        assert_eq!(json["recordedMinutes"], 60);
        assert_eq!(json["peers"][0]["txBilled"], 5001);
        assert_eq!(json["realmPairs"][0]["hourRxBilled"], 14);
    }

    #[test]
    fn without_a_record_there_are_totals_only_and_the_text_says_so() {
        let view = view(&testdata::peer_info(), &counted(), None);
        let text = text(&view).unwrap();
        let first = text.lines().nth(1).unwrap();
        let words: Vec<_> = first.split_whitespace().collect();
        assert_eq!(words[..6], ["b1", "-", "0", "501", "0", "52"]);
        assert!(words[6..].iter().all(|word| *word == "-"), "{text}");
        assert!(text.contains("Totals only"), "{text}");
        assert!(view.realm_pairs.is_empty());
    }

    #[test]
    fn the_text_says_which_part_of_the_last_hour_is_recorded() {
        let note = |now| {
            note(&view(
                &testdata::peer_info(),
                &counted(),
                Some(&record(now)),
            ))
        };
        assert_eq!(note(6030), None);
        let began = note(6000 - 60).unwrap();
        assert!(began.contains("59 minutes"), "{began}");
        let late = note(6000 + 3600).unwrap();
        assert!(late.starts_with("Totals only"), "{late}");
    }
}
