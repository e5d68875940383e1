//! Pod to pod over two nodes and a router: this project's datapath, plain routing and kernel VXLAN,
//! measured in turns in one run.

mod beds;
mod cni;
mod load;
mod metrics;
mod report;

use anyhow::{Context, Result, ensure};
use beds::Bed;
use clap::{Parser, Subcommand};
use ipip_tests::trash::empty_all_on_interrupt;
use metrics::{METRICS, Metric};
use std::{path::PathBuf, time::Duration};

/// Measures the datapath against plain routing and kernel VXLAN.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Fewer and shorter rounds: shows that it works, proves little.
    #[arg(long)]
    quick: bool,
    /// How often each is measured (9, with --quick 3).
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one measurement in milliseconds (1000, with --quick 300).
    #[arg(long, value_name = "MS")]
    duration: Option<u64>,
    /// Measure only metrics whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Also write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Another benchmark, or what this one runs of itself inside pods.
#[derive(Debug, Subcommand)]
enum Part {
    /// ADD + DEL of the CNI plugin against the reference plugins bridge and ptp
    Cni(cni::Options),
    /// The side that offers the load.
    #[command(hide = true)]
    Client(load::Client),
    /// The side that takes the load and counts.
    #[command(hide = true)]
    Server(load::Server),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Client(client)) => client.run(),
        Some(Part::Server(server)) => server.run(),
        Some(Part::Cni(options)) => options.run(),
        None => bench(&arguments),
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    empty_all_on_interrupt()?;
    let (rounds, milliseconds) = if arguments.quick { (3, 300) } else { (9, 1000) };
    let rounds = arguments.rounds.unwrap_or(rounds);
    let duration = Duration::from_millis(arguments.duration.unwrap_or(milliseconds));
    let metrics: Vec<&Metric> = METRICS
        .iter()
        .filter(|metric| {
            let only = arguments.only.as_deref().unwrap_or_default();
            metric.name.contains(only)
        })
        .collect();
    ensure!(rounds > 0, "--rounds 0 measures nothing: ask for 1 or more");
    ensure!(
        !metrics.is_empty(),
        "no metric's name contains the text of --only; there are {:?}",
        METRICS.map(|metric| metric.name)
    );
    eprintln!("building three pairs of nodes");
    let beds = Bed::all()?;
    let mut results: Vec<report::Result> = metrics
        .iter()
        .map(|metric| report::Result::new(metric, &beds))
        .collect();
    for round in 0..rounds {
        for result in &mut results {
            eprint!(
                "\rround {} of {rounds}: {:<30}",
                round + 1,
                result.metric.name
            );
            for turn in 0..beds.len() {
                // Who goes first changes, so that no one always meets the warmer machine.
                let index = (turn + round) % beds.len();
                let bed = &beds[index];
                let rate = load::measure(bed, result.metric, duration)
                    .with_context(|| format!("{} over {}", result.metric.name, bed.name))?;
                result.samples[index].push(rate);
            }
        }
    }
    eprintln!();
    drop(beds);
    println!("{}", report::table(&results));
    if let Some(path) = &arguments.json {
        report::write_json(path, &results, rounds, duration)?;
        println!("all samples: {}", path.display());
    }
    Ok(())
}
