//! How the programs' own time grows with what their maps hold.
//!
//! Each packet is a `BPF_PROG_TEST_RUN` of its own (a repeated one would find the header of the run
//! before), and the kernel times the program alone (`BPF_ENABLE_STATS`).

mod memory;
mod node;
mod packets;

use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use ipip_abi::programs;
use memory::Memory;
use node::{Node, PACKETS, Size};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

/// What does not grow in a row.
const FEW: u32 = 10;

/// Measures ns per packet as peers, pods and flows become many.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 25)]
    rounds: usize,
    /// Also write the rows to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What grows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Many {
    Peers,
    Pods,
    Flows,
}

/// Which packets are sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Traffic {
    /// The same one again and again: all that it needs is in the CPU's caches.
    One,
    /// Another peer, pod or flow each time, in no order.
    Spread,
    /// As `Spread`, but replies of flows that came out of the host stack.
    Replies,
}

const DIMENSIONS: [(Many, &[u32]); 3] = [
    (Many::Peers, &[10, 100, 1_000, 5_000]),
    (Many::Pods, &[10, 1_000, 50_000]),
    (Many::Flows, &[0, 1_000, 100_000]),
];
const PROGRAMS: [(&str, &str); 2] = [
    (programs::FROM_POD, "pod to peer"),
    (programs::FROM_UPLINK, "peer to pod"),
];

impl Options {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        ensure!(self.rounds > 0, "--rounds 0 measures nothing");
        let _stats = enable_stats(Stats::RunTime).context("the kernel does not time programs")?;
        let overhead = Node::new(Many::Peers.size(FEW))?.overhead()?;
        let memory = Memory::new()?;
        let mut rows = Vec::new();
        for (many, sizes) in DIMENSIONS {
            eprintln!("filling maps: {many:?} {sizes:?}");
            let nodes: Vec<Node> = sizes
                .iter()
                .map(|size| Node::new(many.size(*size)))
                .collect::<Result<_>>()?;
            let kinds = match many {
                Many::Flows => vec![Traffic::One, Traffic::Spread, Traffic::Replies],
                _ => vec![Traffic::One, Traffic::Spread],
            };
            for (program, name) in PROGRAMS {
                for traffic in &kinds {
                    eprintln!("{name}, {traffic:?}");
                    let samples = self.measure(&nodes, *traffic, |node| {
                        let conversations = node.conversations(program, *traffic);
                        Ok(node.sample(program, &conversations)? - overhead)
                    })?;
                    let text = traffic.text(many);
                    rows.push(Row::new(format!("{name}, {text}"), many, sizes, samples));
                    if *traffic == Traffic::Spread && many != Many::Flows {
                        let samples = self.measure(&nodes, *traffic, |node| {
                            let conversations = node.conversations(program, *traffic);
                            memory.sample(program, &conversations, node.pass()?)
                        })?;
                        let name = format!("{name}, the reads alone");
                        rows.push(Row::new(name, many, sizes, samples));
                    }
                }
            }
        }
        println!("{}", table(&rows));
        println!(
            "ns a packet of the program alone, less the {overhead:.0} ns that timing takes; medians of {} \
             rounds of {PACKETS} packets; last / first",
            self.rounds
        );
        if let Some(path) = &self.json {
            let rows: Vec<Value> = rows.iter().map(Row::json).collect();
            fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Samples by node, in turns.
    fn measure(
        &self,
        nodes: &[Node],
        traffic: Traffic,
        sample: impl Fn(&Node) -> Result<f64>,
    ) -> Result<Vec<Vec<f64>>> {
        let mut samples = vec![Vec::new(); nodes.len()];
        for round in 0..self.rounds {
            for turn in 0..nodes.len() {
                let index = (turn + round) % nodes.len();
                let node = &nodes[index];
                if traffic != Traffic::Replies || node.size.flows > 0 {
                    samples[index].push(sample(node)?);
                }
            }
        }
        Ok(samples)
    }
}

impl Many {
    fn size(self, count: u32) -> Size {
        let mut size = Size {
            peers: FEW,
            pods: FEW,
            flows: 0,
        };
        match self {
            Self::Peers => size.peers = count,
            Self::Pods => size.pods = count,
            Self::Flows => size.flows = count,
        }
        size
    }
}

impl Traffic {
    fn text(self, many: Many) -> String {
        match self {
            Self::One => "one conversation".into(),
            Self::Spread if many == Many::Flows => "past the flows".into(),
            Self::Spread => format!("spread over all {many:?}").to_lowercase(),
            Self::Replies => "replies of the flows".into(),
        }
    }
}

/// A line of the result: ns by size.
struct Row {
    name: String,
    many: Many,
    cells: Vec<(u32, f64)>,
}

impl Row {
    /// Medians of what was sampled; none where there is no sample.
    fn new(name: String, many: Many, sizes: &[u32], samples: Vec<Vec<f64>>) -> Self {
        let cells = sizes.iter().copied().zip(samples.into_iter().map(median));
        Self {
            name,
            many,
            cells: cells.filter_map(|(size, ns)| Some((size, ns?))).collect(),
        }
    }

    fn json(&self) -> Value {
        let cells = self.cells.iter();
        let ns: serde_json::Map<String, Value> = cells
            .map(|(size, ns)| (size.to_string(), json!(ns)))
            .collect();
        json!({
            "metric": self.name,
            "unit": "ns",
            "grows": format!("{:?}", self.many).to_lowercase(),
            "ns": ns,
            "last_to_first": self.growth(),
        })
    }

    fn growth(&self) -> f64 {
        let ends = self.cells.first().zip(self.cells.last());
        ends.map_or(f64::NAN, |(first, last)| last.1 / first.1)
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["", "grows", "ns a packet", "growth"]);
    for row in rows {
        let cells = row.cells.iter();
        let cells: Vec<String> = cells
            .map(|(size, ns)| format!("{size}: {:.0}", ns))
            .collect();
        table.add_row([
            row.name.clone(),
            format!("{:?}", row.many).to_lowercase(),
            cells.join("   "),
            format!("{:.2}", row.growth()),
        ]);
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
