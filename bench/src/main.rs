//! The benchmarks. Without a subcommand: pod to pod beside other ways to connect pods, see [`compare`].

mod cni;
mod compare;
mod output;
mod peer_addresses;
mod peers;
mod scale;
mod statistics;
mod sync;

use anyhow::Result;
use clap::{Parser, Subcommand};
use compare::CompareOptions;
use compare::endpoint::{LoadClient, LoadServer};

/// Measures ipip between two pods beside plain routing, kernel VXLAN and, on one node, a bridge.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
    #[command(flatten)]
    compare: CompareOptions,
}

/// Another benchmark, or a process that the default benchmark starts in a pod.
#[derive(Debug, Subcommand)]
enum Benchmark {
    /// ADD + DEL of the CNI plugin beside the reference plugins bridge and ptp
    Cni(cni::CniOptions),
    /// Nanoseconds per packet as the numbers of peers, pods and live flows grow
    Scale(scale::ScaleOptions),
    /// What an agent costs that verifies the paths to thousands of peers, which answer its probes
    Peers(peers::PeersOptions),
    /// How fast one agent follows thousands of nodes of a real API server, and what that costs
    Sync(sync::SyncOptions),
    /// The process that offers the load
    #[command(hide = true)]
    Client(LoadClient),
    /// The process that receives the load
    #[command(hide = true)]
    Server(LoadServer),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.benchmark {
        None => arguments.compare.run(),
        Some(Benchmark::Cni(options)) => options.run(),
        Some(Benchmark::Scale(options)) => options.run(),
        Some(Benchmark::Peers(options)) => options.run(),
        Some(Benchmark::Sync(options)) => options.run(),
        Some(Benchmark::Client(client)) => client.run(),
        Some(Benchmark::Server(server)) => server.run(),
    }
}
