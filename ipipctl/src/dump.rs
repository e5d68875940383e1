//! `ipipctl dump`: the entries of the maps.

use crate::{
    entries,
    names::{self, Names},
    output::{self, Format},
    rows::{
        ConfigRow, CounterRow, DropRow, FlowRow, NodeAddrRow, PeerInfoRow, PeerRow, PeerTrafficRow,
        PodRow, RouteRow,
    },
};
use anyhow::Result;
use ipip_abi::maps::{self, MapSpec};
use ipip_datapath::Maps;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// A map that can be asked for.
pub type Map = &'static MapSpec;

/// One map with its entries.
#[derive(Debug, Serialize)]
struct Dumped {
    map: &'static str,
    holds: &'static str,
    entries: Vec<Value>,
    /// Why there are no entries to see.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// Finds a map by its name, whatever its case.
///
/// # Errors
/// A sentence with every name, if none is this one.
pub fn parse_map(name: &str) -> Result<Map, String> {
    let found = maps::ALL.iter().find(|m| m.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<_> = maps::ALL.iter().map(|m| m.name).collect();
        format!("no map has this name; the maps are {}", names.join(", "))
    })
}

/// The entries of `map`, or of every map.
pub fn dump(maps: &Maps, map: Option<Map>, format: Format) -> Result<String> {
    let names = Names::new(&entries::peer_info(maps)?, names::interfaces());
    let Some(map) = map else {
        let all = maps::ALL.iter();
        let all = all.map(|map| read(maps, map, &names));
        return render_all(&all.collect::<Result<Vec<_>>>()?, format);
    };
    let dumped = read(maps, map, &names)?;
    match (dumped.note, format) {
        (Some(note), Format::Table) => Ok(format!("{} {note}\n", dumped.map)),
        _ => output::render(&dumped.entries, format),
    }
}

fn render_all(all: &[Dumped], format: Format) -> Result<String> {
    if format == Format::Json {
        return output::json(&all);
    }
    let mut text = String::new();
    for dumped in all {
        let blank = if text.is_empty() { "" } else { "\n" };
        writeln!(text, "{blank}# {}: {}", dumped.map, dumped.holds)?;
        match dumped.note {
            Some(note) => writeln!(text, "({note})")?,
            None => text.push_str(&output::table(&dumped.entries)?),
        }
    }
    Ok(text)
}

fn read(maps: &Maps, map: Map, names: &Names) -> Result<Dumped> {
    let mut note = None;
    let entries = match map.name {
        name if name == maps::CONFIG.name => {
            values([ConfigRow::new(&entries::config(maps)?, names)])?
        }
        name if name == maps::PODS.name => {
            values(entries::pods(maps)?.iter().map(|e| PodRow::new(e, names)))?
        }
        name if name == maps::ROUTES.name => values(
            entries::routes(maps)?
                .iter()
                .map(|e| RouteRow::new(e, names)),
        )?,
        name if name == maps::ROUTE_CACHE.name => values(
            entries::route_blocks(maps)?
                .iter()
                .map(|e| RouteRow::new(e, names)),
        )?,
        name if name == maps::PEERS.name => {
            values(entries::peers(maps)?.iter().map(|e| PeerRow::new(e, names)))?
        }
        name if name == maps::PEER_INFO.name => {
            let entries = entries::peer_info(maps)?;
            values(entries.iter().map(|e| PeerInfoRow::new(e, names)))?
        }
        name if name == maps::NODE_ADDRS.name => {
            let entries = entries::node_addrs(maps)?;
            values(entries.iter().map(|e| NodeAddrRow::new(e, names)))?
        }
        name if name == maps::FLOWS.name => values(entries::flows(maps)?.iter().map(FlowRow::new))?,
        name if name == maps::COUNTERS.name => {
            values(entries::counters(maps)?.iter().map(CounterRow::new))?
        }
        name if name == maps::DROPS.name => values(entries::drops(maps)?.iter().map(DropRow::new))?,
        name if name == maps::PEER_TRAFFIC.name => {
            let entries = entries::peer_traffic(maps)?;
            values(entries.iter().map(|e| PeerTrafficRow::new(e, names)))?
        }
        name => {
            note = Some(match name {
                _ if name == maps::EVENTS.name => {
                    "is a ring buffer for one reader, it has no entries to look at"
                }
                _ if name == maps::POD_CACHE.name || name == maps::NODE_CACHE.name => {
                    "is the cache of the map above and has no other entries"
                }
                _ => "is the programs' own, it has no entries to look at",
            });
            Vec::new()
        }
    };
    Ok(Dumped {
        map: map.name,
        holds: map.holds,
        entries,
        note,
    })
}

fn values<R: Serialize>(rows: impl IntoIterator<Item = R>) -> Result<Vec<Value>> {
    let values = rows.into_iter().map(|row| Ok(serde_json::to_value(row)?));
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;

    #[test]
    fn a_map_is_found_by_its_name_in_any_case() {
        assert_eq!(parse_map("peer_info").unwrap().name, "PEER_INFO");
        assert_eq!(parse_map("PODS").unwrap().name, "PODS");
    }

    #[test]
    fn an_unknown_map_is_answered_with_the_names_of_all() {
        let error = parse_map("pod").unwrap_err();
        for map in maps::ALL {
            assert!(error.contains(map.name), "{error}");
        }
    }

    #[test]
    fn each_entry_is_shown_with_its_names() {
        let names = testdata::names();
        let rows = [
            values([ConfigRow::new(&testdata::config(), &names)]),
            values([PodRow::new(&testdata::pod(), &names)]),
            values(testdata::routes().iter().map(|e| RouteRow::new(e, &names))),
            values(testdata::peers().iter().map(|e| PeerRow::new(e, &names))),
            values(
                testdata::peer_info()
                    .iter()
                    .map(|e| PeerInfoRow::new(e, &names)),
            ),
            values([NodeAddrRow::new(&testdata::node_addr(), &names)]),
            values(testdata::flows().iter().map(FlowRow::new)),
        ];
        let text: String = rows
            .into_iter()
            .map(|rows| output::table(&rows.unwrap()).unwrap())
            .collect();
        assert_eq!(text, testdata::TABLES);
    }

    #[test]
    fn a_dump_of_all_maps_names_each_and_says_why_one_has_no_entries() {
        let dumped = |map, note| Dumped {
            map,
            holds: "something",
            entries: Vec::new(),
            note,
        };
        let all = [dumped("PODS", None), dumped("EVENTS", Some("is a ring"))];
        assert_eq!(
            render_all(&all, Format::Table).unwrap(),
            "# PODS: something\n(none)\n\n# EVENTS: something\n(is a ring)\n"
        );
        let json: Value = serde_json::from_str(&render_all(&all, Format::Json).unwrap()).unwrap();
        assert_eq!(json[0]["map"], "PODS");
        assert_eq!(json[0]["entries"], Value::Array(Vec::new()));
        assert_eq!(json[1]["note"], "is a ring");
    }
}
