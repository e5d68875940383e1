//! `ipipctl dump`: the entries of the maps. Every map is listed either in [`READERS`] or in [`NOTES`].

use crate::{
    names::{self, Names},
    output::{self, Format},
    rows::{
        CandidateRow, ConfigRow, ConnectionRow, CounterRow, DropRow, FlowRow, MapRow, MtuHintRow,
        NodeAddrRow, PeerInfoRow, PeerRow, PeerTrafficRow, PodRow, ProbeSecretRow, ProbeStateRow,
        RouteCacheRow, RouteRow,
    },
};
use anyhow::Result;
use ipip_abi::maps::{self, MapSpec};
use ipip_datapath::Maps;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// A map.
pub type Map = &'static MapSpec;

/// Reads the entries of a map as rows.
type Reader = fn(&Maps, &Names) -> Result<Vec<Value>>;

/// The maps whose entries are shown.
const READERS: [(Map, Reader); 16] = [
    reader::<ConfigRow>(),
    reader::<PodRow>(),
    reader::<RouteRow>(),
    reader::<RouteCacheRow>(),
    reader::<PeerRow>(),
    reader::<PeerInfoRow>(),
    reader::<CandidateRow>(),
    reader::<ProbeSecretRow>(),
    reader::<ProbeStateRow>(),
    reader::<MtuHintRow>(),
    reader::<NodeAddrRow>(),
    reader::<FlowRow>(),
    reader::<ConnectionRow>(),
    reader::<CounterRow>(),
    reader::<DropRow>(),
    reader::<PeerTrafficRow>(),
];

/// The other maps, with the reason why no entries are shown.
const NOTES: [(Map, &str); 9] = [
    (&maps::POD_CACHE, CACHE),
    (&maps::NODE_CACHE, CACHE),
    (&maps::FLOW_PAIRS, INTERNAL),
    (&maps::ANSWERS, RING),
    (&maps::EVENTS, RING),
    (&maps::EVENT_BUDGET, INTERNAL),
    (
        &maps::SENT,
        "is between the programs and the agent: PEER_TRAFFIC shows what was sent",
    ),
    (
        &maps::NEXT_HOPS_UNTIL,
        "is a time in the kernel's own units: it has no entries to show",
    ),
    (
        &maps::POD_RECORDS,
        "holds what every version must know of a pod: PODS shows it",
    ),
];
const RING: &str = "is a ring buffer for one reader: it has no entries to show";
const CACHE: &str = "holds copies of entries of the map that it caches";
const INTERNAL: &str = "is used only by the programs: it has no entries to show";

/// One map with its entries.
#[derive(Debug, Serialize)]
struct Dumped {
    map: &'static str,
    holds: &'static str,
    entries: Vec<Value>,
    /// Why no entries are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
}

/// Finds a map by its name, in upper or lower case.
///
/// # Errors
/// A sentence that lists the names of all maps.
pub fn parse_map(name: &str) -> Result<Map, String> {
    let found = maps::ALL.iter().find(|m| m.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let names: Vec<_> = maps::ALL.iter().map(|m| m.name).collect();
        format!("no map has this name; the maps are {}", names.join(", "))
    })
}

/// The entries of `map`, or of every map.
pub fn dump(maps: &Maps, map: Option<Map>, format: Format) -> Result<String> {
    let names = Names::new(&PeerInfoRow::read(maps)?, names::interfaces());
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
    let reader = READERS.iter().find(|(of, _)| *of == map);
    let entries = match reader {
        Some((_, read)) => read(maps, names)?,
        None => Vec::new(),
    };
    Ok(Dumped {
        map: map.name,
        holds: map.holds,
        entries,
        note: note(map),
    })
}

/// Why no entries of `map` are shown.
fn note(map: Map) -> Option<&'static str> {
    let found = NOTES.iter().find(|(of, _)| *of == map);
    found.map(|(_, note)| *note)
}

const fn reader<R: MapRow>() -> (Map, Reader) {
    (R::MAP, read_rows::<R>)
}

fn read_rows<R: MapRow>(maps: &Maps, names: &Names) -> Result<Vec<Value>> {
    values::<R>(&R::read(maps)?, names)
}

fn values<R: MapRow>(entries: &[R::Entry], names: &Names) -> Result<Vec<Value>> {
    let rows = entries.iter().map(|entry| R::new(entry, names));
    rows.map(|row| Ok(serde_json::to_value(row)?)).collect()
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
    fn the_error_for_an_unknown_map_names_all_maps() {
        let error = parse_map("pod").unwrap_err();
        for map in maps::ALL {
            assert!(error.contains(map.name), "{error}");
        }
    }

    #[test]
    fn each_map_has_either_a_reader_or_a_note() {
        for map in maps::ALL {
            let has_reader = READERS.iter().any(|(of, _)| *of == map);
            assert_ne!(has_reader, note(map).is_some(), "{}", map.name);
        }
    }

    #[test]
    fn each_entry_is_shown_with_its_names() {
        let names = testdata::names();
        let rows = [
            values::<ConfigRow>(&[testdata::config()], &names),
            values::<PodRow>(&[testdata::pod()], &names),
            values::<RouteRow>(&testdata::routes(), &names),
            values::<PeerRow>(&testdata::peers(), &names),
            values::<PeerInfoRow>(&testdata::peer_info(), &names),
            values::<NodeAddrRow>(&[testdata::node_addr()], &names),
            values::<FlowRow>(&testdata::flows(), &names),
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
