//! The project's own commands: `cargo xtask <COMMAND>`.

mod bench;
mod build;
mod clean;
mod cluster;
mod command;
mod demo;
mod ebpf;
mod hosts;
mod image;
mod kernels;
mod lint;
mod man;
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
    /// Install everything that any of these commands needs (Debian 12, Ubuntu 24.04); each command
    /// installs what it needs itself
    Setup {
        /// Only print the commands that would run
        #[arg(long)]
        dry_run: bool,
    },
    /// Build the eBPF object, target/ebpf/ipip.o (release.o with --release)
    BuildEbpf(ebpf::Options),
    /// Build the eBPF object and every binary
    Build {
        /// Optimised binaries, and an object without DWARF
        #[arg(long)]
        release: bool,
    },
    /// Prepare the machine, build, and run the tests
    Test(test::Options),
    /// Build the programs of a real Kubernetes cluster (Kubernetes, etcd, containerd, ...) that are
    /// missing in ~/.cache/ipip/tools, or IPIP_TOOLS
    Tools(tools::Options),
    /// Build what images need and takes long: a test run calls this in the background
    #[command(hide = true)]
    ImagePrograms,
    /// Build the product's container image, which holds only static programs, into target/image
    Image(image::Options),
    /// Show the product in three simulated clouds; prepares the machine and builds first
    Demo {
        /// Leave the clouds running and print how to enter them
        #[arg(long)]
        keep: bool,
        /// Show it on a real Kubernetes cluster instead, first without this project and then with it;
        /// builds Kubernetes first (see `cargo xtask tools`)
        #[arg(long, conflicts_with = "keep")]
        kubernetes: bool,
    },
    /// Write the man pages of ipip-agent and ipipctl into target/man; builds both first
    Man,
    /// Start, use and remove a real Kubernetes cluster in three simulated clouds
    Cluster {
        /// up, down, status, kubectl or enter (see `cargo xtask cluster help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure the speed beside plain routing and VXLAN. `sync` measures how fast an agent follows 5,000
    /// nodes of a real API server, `cni` the CNI plugin beside bridge and ptp, `scale` how the cost of
    /// a packet grows
    Bench {
        /// Arguments of the benchmark (see `cargo xtask bench -- --help`)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// End all processes and remove all namespaces, pins and files of labs and tests, also after a
    /// crash. This also removes the datapath of an agent that runs on this machine itself
    Clean {
        /// Only list what would be removed
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
        Task::ImagePrograms => image::programs(),
        Task::Image(options) => image::image(&options),
        Task::Demo {
            kubernetes: true, ..
        } => demo::kubernetes(),
        Task::Demo { keep, .. } => demo::clouds(keep),
        Task::Man => man::man(),
        Task::Cluster { args } => cluster::cluster(&args),
        Task::Bench { args } => {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            bench::bench(&args)
        }
        Task::Clean { dry_run } => clean::clean(dry_run),
    }
}
