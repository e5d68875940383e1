//! How the programs' own time grows with the number of entries in their maps.
//!
//! Each packet is a separate `BPF_PROG_TEST_RUN` (a repeated run would start with the outer header that the
//! run before has added), and the kernel times the program alone (`BPF_ENABLE_STATS`).

mod filled_node;
mod packets;
mod reads;
mod report;

use crate::output;
use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use clap::Args;
use filled_node::{FilledNode, MapSizes};
use ipip_abi::Program;
use reads::ReadTables;
use report::GrowthRow;
use serde_json::Value;
use std::path::PathBuf;

/// Packets of one sample.
const PACKETS: u32 = 2000;
/// Size of each dimension that does not grow in a row.
const FEW: u32 = 10;

/// Arguments of the benchmark `scale`.
#[derive(Debug, Args)]
pub struct ScaleOptions {
    /// How often each size is measured
    #[arg(long, value_name = "N", default_value_t = 25)]
    rounds: usize,
    /// Also write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The number of entries that grows in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dimension {
    Peers,
    Pods,
    Flows,
}

/// Which packets a row has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pattern {
    /// The same packet again and again: all entries that it needs are in the CPU's caches.
    One,
    /// Another peer, pod or flow each time, in random order.
    Spread,
    /// Like `Spread`, but replies of recorded flows, which take the slow path.
    Replies,
}

/// A program that is measured.
#[derive(Clone, Copy, Debug)]
struct MeasuredProgram {
    program: Program,
    name: &'static str,
}

const DIMENSIONS: [(Dimension, &[u32]); 3] = [
    (Dimension::Peers, &[10, 100, 1_000, 5_000]),
    (Dimension::Pods, &[10, 1_000, 50_000]),
    (Dimension::Flows, &[0, 1_000, 100_000]),
];
const PROGRAMS: [MeasuredProgram; 2] = [
    MeasuredProgram {
        program: Program::FromPod,
        name: "pod to peer",
    },
    MeasuredProgram {
        program: Program::FromUplink,
        name: "peer to pod",
    },
];

impl ScaleOptions {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds is 0; remedy: use 1 or more");
        let _stats = enable_stats(Stats::RunTime).context("the kernel does not time programs")?;
        let overhead = FilledNode::new(Dimension::Peers.map_sizes(FEW))?.overhead()?;
        let tables = ReadTables::new()?;
        let mut rows = Vec::new();
        for (dimension, sizes) in DIMENSIONS {
            eprintln!("filling maps: {dimension:?} {sizes:?}");
            let nodes: Vec<FilledNode> = sizes
                .iter()
                .map(|size| FilledNode::new(dimension.map_sizes(*size)))
                .collect::<Result<_>>()?;
            let row = |name: String, samples| GrowthRow::new(name, dimension, sizes, samples);
            for MeasuredProgram { program, name } in PROGRAMS {
                for pattern in dimension.patterns() {
                    eprintln!("{name}, {pattern:?}");
                    let samples = self.measure(&nodes, *pattern, |node| {
                        let conversations = node.conversations(program, *pattern);
                        Ok(node.sample(program, *pattern, &conversations)? - overhead)
                    })?;
                    rows.push(row(format!("{name}, {}", pattern.text(dimension)), samples));
                }
                if dimension != Dimension::Flows {
                    eprintln!("{name}, the reads alone");
                    let samples = self.measure(&nodes, Pattern::Spread, |node| {
                        let conversations = node.conversations(program, Pattern::Spread);
                        tables.sample(program, &conversations, node.foreign_packet()?)
                    })?;
                    rows.push(row(format!("{name}, the reads alone"), samples));
                }
            }
        }
        println!("{}", report::table(&rows));
        println!(
            "ns per packet of the program alone, less the {overhead:.0} ns that timing takes; medians of {} \
             rounds of {PACKETS} packets; growth is last / first",
            self.rounds
        );
        if let Some(path) = &self.json {
            let rows: Vec<Value> = rows.iter().map(GrowthRow::json).collect();
            output::write_json(path, &rows)?;
        }
        Ok(())
    }

    /// Samples of each node, measured in turns.
    fn measure(
        &self,
        nodes: &[FilledNode],
        pattern: Pattern,
        sample: impl Fn(&FilledNode) -> Result<f64>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut samples = vec![Vec::new(); nodes.len()];
        for round in 0..self.rounds {
            for turn in 0..nodes.len() {
                let index = (turn + round) % nodes.len();
                let node = &nodes[index];
                if pattern != Pattern::Replies || node.sizes.flows > 0 {
                    samples[index].push(sample(node)?);
                }
            }
        }
        Ok(samples)
    }
}

impl Dimension {
    /// The sizes of all dimensions if this one has size `count`.
    fn map_sizes(self, count: u32) -> MapSizes {
        let mut sizes = MapSizes {
            peers: FEW,
            pods: FEW,
            flows: 0,
        };
        match self {
            Self::Peers => sizes.peers = count,
            Self::Pods => sizes.pods = count,
            Self::Flows => sizes.flows = count,
        }
        sizes
    }

    fn patterns(self) -> &'static [Pattern] {
        match self {
            Self::Peers | Self::Pods => &[Pattern::One, Pattern::Spread],
            Self::Flows => &[Pattern::One, Pattern::Spread, Pattern::Replies],
        }
    }

    /// Its name in the table and in JSON.
    fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Pods => "pods",
            Self::Flows => "flows",
        }
    }
}

impl Pattern {
    fn text(self, dimension: Dimension) -> String {
        match self {
            Self::One => "one conversation".into(),
            Self::Spread if dimension == Dimension::Flows => "past the flows".into(),
            Self::Spread => format!("spread over all {}", dimension.name()),
            Self::Replies => "replies of the flows".into(),
        }
    }
}
