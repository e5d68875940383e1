//! Pod to pod over two nodes and a router: this project's datapath, plain routing, kernel VXLAN and,
//! where the kernel has it, kernel ipip, measured in turns in one run.

mod beds;
mod busy;
mod chart;
mod cni;
mod flannel;
mod load;
mod metrics;
mod report;
mod scale;
mod scene;
mod services;
mod traffic;

use anyhow::{Result, ensure};
use beds::Other;
use clap::{Parser, Subcommand};
use ipip_testkit::trash::empty_all_on_interrupt;
use load::Times;
use metrics::{ROWS, Row};
use scene::SCENES;
use std::{fs, path::PathBuf, time::Duration};

/// Measures the datapath against plain routing, kernel VXLAN and, on one node, a bridge.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Fewer and shorter rounds (under 3 minutes): shows that it works, proves little.
    #[arg(long)]
    quick: bool,
    /// How often each is measured (7, with --quick 3).
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one measurement in milliseconds (500, with --quick 110).
    #[arg(long, value_name = "MS")]
    duration: Option<u64>,
    /// Measure only metrics whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Leave out the metrics on an underlay of MTU 9000.
    #[arg(long)]
    no_jumbo: bool,
    /// Measure also `other`: ours with the agent and the plugin in this folder, for example those of
    /// another commit with the same ABI version.
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Measure also `other`: ours changed by this bash script, once a bed. It finds in NODES, ROUTER and PODS
    /// names of network namespaces, in VETHS the host sides of the pods' veths, in POD_NODES their nodes.
    #[arg(long, value_name = "FILE")]
    set_up: Option<PathBuf>,
    /// Write the rows to this file: metric, unit, ours, plain, vxlan, ratio_plain, ratio_vxlan, spread.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the ratios to this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Another benchmark, or what this one runs of itself inside pods.
#[derive(Debug, Subcommand)]
enum Part {
    /// ADD + DEL of the CNI plugin against the reference plugins bridge and ptp
    Cni(cni::Options),
    /// ns per packet as peers, pod entries and live flows become many
    Scale(scale::Options),
    /// The side that offers the load.
    #[command(hide = true)]
    Client(load::Client),
    /// The side that takes the load.
    #[command(hide = true)]
    Server(load::Server),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Client(client)) => client.run(),
        Some(Part::Server(server)) => server.run(),
        Some(Part::Cni(options)) => options.run(),
        Some(Part::Scale(options)) => options.run(),
        None => bench(&arguments),
    }
}

fn bench(arguments: &Arguments) -> Result<()> {
    empty_all_on_interrupt()?;
    let (rounds, warm_up, measure) = match arguments.quick {
        true => (3, 75, 110),
        false => (7, 200, 500),
    };
    let rounds = arguments.rounds.unwrap_or(rounds);
    let times = Times {
        warm_up: Duration::from_millis(warm_up),
        measure: Duration::from_millis(arguments.duration.unwrap_or(measure)),
    };
    ensure!(rounds > 0, "--rounds 0 measures nothing: ask for 1 or more");
    let only = arguments.only.as_deref().unwrap_or_default();
    let other = Other {
        programs: arguments.against.clone(),
        set_up: arguments.set_up.clone(),
    };
    let has_other = other.programs.is_some() || other.set_up.is_some();
    let all = ROWS.map(|row| if has_other { row.against_other() } else { row });
    let mut lines = Vec::new();
    for scene in SCENES {
        if arguments.no_jumbo && scene.uplink_mtu > 1500 {
            continue;
        }
        let is_wanted =
            |row: &&Row| scene.has(row) && format!("{}{}", row.metric, scene.suffix).contains(only);
        let rows: Vec<&Row> = all.iter().filter(is_wanted).collect();
        if !rows.is_empty() {
            lines.extend(scene.measure(&rows, &other, rounds, times)?);
        }
    }
    ensure!(
        !lines.is_empty(),
        "no metric's name contains {only:?}; there are {:?}",
        ROWS.map(|row| row.metric)
    );
    println!("{}", report::table(&lines));
    let note = format!(
        "Linux {}, {} CPUs, medians of {rounds} rounds of {} ms, load average at the end {}",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
        times.measure.as_millis(),
        fs::read_to_string("/proc/loadavg")?
            .split(' ')
            .next()
            .unwrap_or_default(),
    );
    println!("{note}");
    if let Some(path) = &arguments.json {
        report::write_json(path, &lines)?;
        println!("rows: {}", path.display());
    }
    if let Some(path) = &arguments.svg {
        chart::write(path, &lines, &note)?;
        println!("chart: {}", path.display());
    }
    Ok(())
}
