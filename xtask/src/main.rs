//! The project's own commands: `cargo xtask <COMMAND>`.

mod command;
mod ebpf;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF object into target/ebpf/ipip.o
    BuildEbpf(ebpf::Options),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::BuildEbpf(options) => ebpf::build(options).map(drop),
    }
}
