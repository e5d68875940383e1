//! docs/troubleshooting.md explains every drop reason and peer state, and no others.

use ipip_abi::{DropReason, PeerState};

const TEXT: &str = include_str!("../../docs/troubleshooting.md");

/// The rows of the table under a heading, each as its cells.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = TEXT.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(row.split(" | ").collect())
    });
    rows.skip(1).collect()
}

#[test]
fn every_drop_reason_is_explained_with_its_code_and_nothing_else_is() {
    let rows = table("Drop reasons");
    let named: Vec<(&str, &str)> = rows.iter().map(|row| (row[0], row[1])).collect();
    let codes: Vec<(String, String)> = DropReason::ALL
        .iter()
        .map(|&it| ((it as u8).to_string(), format!("`{}`", it.name())))
        .collect();
    let codes: Vec<(&str, &str)> = codes.iter().map(|(a, b)| (&**a, &**b)).collect();
    assert_eq!(named, codes);
    assert!(rows.iter().all(|row| row.len() == 4), "{rows:?}");
}

#[test]
fn every_peer_state_is_explained_and_nothing_else_is() {
    let rows = table("Peer states");
    let named: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let states = PeerState::ALL.iter().map(|it| format!("`{}`", it.name()));
    assert_eq!(named, states.collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row.len() == 3), "{rows:?}");
}
