//! One kind of underlay with every bed on it, measured in turns.

use crate::{
    beds::{Bed, Kind, Other, Ours},
    load::{self, FIRST_PORT, Measured, Times},
    metrics::{Case, Load, Row, Services},
    report::{Line, kinds},
    services,
};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// An underlay.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// What its metrics' names end with.
    pub suffix: &'static str,
    /// MTU of all wires between the nodes.
    pub uplink_mtu: u32,
    part: Part,
}

/// Which rows are measured on an underlay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    /// All.
    All,
    /// All but those in which plain routing has our pods' MTU: 20 bytes of 9000 are no difference.
    Jumbo,
    /// Bulk transfers, on wires that [`Bed::segment`] changed; not in larger packets, which are for wires
    /// that do not have the host segment them.
    Segmented,
}

/// All of them.
pub const SCENES: [Scene; 3] = [
    Scene {
        suffix: "",
        uplink_mtu: 1500,
        part: Part::All,
    },
    Scene {
        suffix: "_jumbo",
        uplink_mtu: 9000,
        part: Part::Jumbo,
    },
    Scene {
        suffix: "_segmented",
        uplink_mtu: 1500,
        part: Part::Segmented,
    },
];

/// Samples of a round, by the case's name and the bed.
type Samples = BTreeMap<(&'static str, Kind), Measured>;

impl Scene {
    /// Whether the row is measured here.
    pub fn has(&self, row: &Row) -> bool {
        let between_nodes = !row.columns.contains(&Some(Kind::Ours(Ours::OneNode)));
        let at_our_mtu = row.columns.contains(&Some(Kind::PlainOurMtu));
        let is_big = matches!(row.columns[0], Some(Kind::Ours(ours)) if ours.is_big_tcp());
        match self.part {
            Part::All => true,
            Part::Jumbo => !at_our_mtu,
            Part::Segmented => {
                let is_bulk = matches!(row.case.load, Load::Stream | Load::PacedStream);
                is_bulk && between_nodes && !at_our_mtu && !is_big && !row.case.back
            }
        }
    }

    /// Builds the beds, measures `rows` on them, removes them.
    pub fn measure(
        &self,
        rows: &[&Row],
        other: &Other,
        rounds: usize,
        times: Times,
    ) -> Result<Vec<Line>> {
        eprintln!(
            "building the beds on an underlay of MTU {}",
            self.uplink_mtu
        );
        let wanted: BTreeSet<Kind> = rows
            .iter()
            .flat_map(|row| kinds(&row.columns).map(|(_, kind)| kind))
            .collect();
        let mut beds = Vec::new();
        for kind in wanted {
            match Bed::build(kind, self.uplink_mtu, other)? {
                Some(bed) => {
                    if self.part == Part::Segmented {
                        bed.segment()?;
                    }
                    beds.push(bed);
                }
                None => eprintln!("this kernel has no device of type ipip: {kind:?} is skipped"),
            }
        }
        let mut lines: Vec<Line> = rows.iter().map(|row| Line::new(row, self.suffix)).collect();
        // The rules cannot be taken away as fast as a round ends, so what needs them comes last.
        for with_services in [false, true] {
            let part: Vec<usize> = (0..rows.len())
                .filter(|row| (rows[*row].case.services != Services::Absent) == with_services)
                .collect();
            if part.is_empty() {
                continue;
            }
            if with_services {
                self.install_services(&beds, rows, &part)?;
            }
            for round in 0..rounds {
                let rows_of_part: Vec<&Row> = part.iter().map(|row| rows[*row]).collect();
                let samples = self.round(&beds, &rows_of_part, round, rounds, times)?;
                for &index in &part {
                    let row = rows[index];
                    for (column, kind) in kinds(&row.columns) {
                        if let Some(measured) = samples.get(&(row.case.name, kind)) {
                            lines[index].samples[column].push(row.value.of(measured));
                        }
                    }
                }
            }
            eprintln!();
        }
        Ok(lines)
    }

    /// Each case once on each bed that a row compares it on.
    fn round(
        &self,
        beds: &[Bed],
        rows: &[&Row],
        round: usize,
        rounds: usize,
        times: Times,
    ) -> Result<Samples> {
        let mut cases: Vec<Case> = Vec::new();
        for row in rows {
            if !cases.contains(&row.case) {
                cases.push(row.case);
            }
        }
        let mut samples = Samples::new();
        for case in cases {
            let here: Vec<&Bed> = beds
                .iter()
                .filter(|bed| {
                    let mut rows = rows.iter().filter(|row| row.case == case);
                    rows.any(|row| row.columns.contains(&Some(bed.kind)))
                })
                .collect();
            eprint!(
                "\rround {} of {rounds}: {:<40}",
                round + 1,
                format!("{}{}", case.name, self.suffix)
            );
            for turn in 0..here.len() {
                // Who goes first changes, so that no one always meets the warmer machine.
                let bed = here[(turn + round) % here.len()];
                let measured = load::measure(bed, &case, times)
                    .with_context(|| format!("{} over {:?}", case.name, bed.kind))?;
                samples.insert((case.name, bed.kind), measured);
            }
        }
        Ok(samples)
    }

    fn install_services(&self, beds: &[Bed], rows: &[&Row], part: &[usize]) -> Result<()> {
        eprintln!("loading kube-proxy's rules on every node");
        let flows = part.iter().map(|row| rows[*row].case.flows).max();
        let ports: Vec<u16> = (0..flows.unwrap_or(0)).map(|n| FIRST_PORT + n).collect();
        for bed in beds {
            let needs = |row: &&usize| rows[**row].columns.contains(&Some(bed.kind));
            if part.iter().any(|row| needs(&row)) {
                for node in bed.nodes() {
                    services::install(node, bed.address(1), &ports)?;
                }
            }
        }
        Ok(())
    }
}
