//! The project's own commands: `cargo xtask <COMMAND>`.

mod bench;
mod build;
mod clean;
mod cluster;
mod command;
mod demo;
mod ebpf;
mod image;
mod kernels;
mod lint;
mod runtimes;
mod setup;
mod tally;
mod test;
mod toolchain;
mod tools;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need and this machine lacks (Debian 12, Ubuntu 24.04)
    Setup {
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the eBPF object into target/ebpf/ipip.o
    BuildEbpf(ebpf::Options),
    /// Build the eBPF object and every binary
    Build {
        /// Optimised binaries, and an object without DWARF
        #[arg(long)]
        release: bool,
    },
    /// Run the tests, all areas or some; prepares and builds first
    Test(test::Options),
    /// Build the programs of a real Kubernetes cluster (Kubernetes, etcd, containerd, ...) into
    /// ~/.cache/ipip/tools, or IPIP_TOOLS; those that are there already are kept
    Tools(tools::Options),
    /// Build the product's container image into target/image: static programs on nothing else
    Image(image::Options),
    /// Show the whole product in three simulated clouds; prepares and builds first
    Demo {
        /// Leave the clouds running and say how to enter them
        #[arg(long)]
        keep: bool,
        /// Instead on a real Kubernetes cluster, without this project and with it; builds Kubernetes
        /// first (see `cargo xtask tools`)
        #[arg(long, conflicts_with = "keep")]
        kubernetes: bool,
    },
    /// Keep a real Kubernetes cluster in three simulated clouds: up, down, status, kubectl, enter
    Cluster {
        /// For the cluster (see `cargo xtask cluster help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure speed against plain routing and VXLAN; with `sync` how fast an agent follows 5,000 nodes
    /// of a real API server, with `cni` the CNI plugin against bridge and ptp, with `scale` how the
    /// cost of a packet grows; prepares and builds first
    Bench {
        /// For the benchmark (see `cargo xtask bench -- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// End every process and remove every namespace and pin that the project made, also after a
    /// crash; with them goes the datapath of an agent that runs on this very machine
    Clean {
        /// Only list them
        #[arg(long)]
        dry_run: bool,
    },
}

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Setup { dry_run } => setup::setup(dry_run),
        Task::BuildEbpf(options) => build::object(options),
        Task::Build { release } => build::build(release),
        Task::Test(options) => test::test(&options),
        Task::Tools(options) => tools::tools(&options),
        Task::Image(options) => image::image(&options),
        Task::Demo {
            kubernetes: true, ..
        } => demo::kubernetes(),
        Task::Demo { keep, .. } => demo::clouds(keep),
        Task::Cluster { args } => cluster::cluster(&args),
        Task::Bench { args } => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            bench::bench(&args)
        }
        Task::Clean { dry_run } => clean::clean(dry_run),
    }
}
