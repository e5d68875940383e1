//! `ipipctl`: shows the datapath of a node. It reads the pinned maps and needs no running agent, also for `probe`.
//! `kubeadm-config` writes a kubeadm configuration for a cluster over several clouds.
//!
//! Exit codes: 0 success, 1 error, 2 wrong usage, 3 no datapath is pinned, 4 a path in use gives no answer (`probe`).

mod agent_paths;
mod agent_report;
mod drops;
mod dump;
mod generate;
mod kernel_drops;
mod kubeadm;
mod names;
mod output;
mod peers;
mod probe;
mod rows;
mod state_file;
mod status;
#[cfg(test)]
mod testdata;
mod traffic;
mod traffic_record;

use agent_report::AgentReport;
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use ipip_datapath::{DEFAULT_PIN_ROOT, DEFAULT_STATE_DIR, Error, Maps, Pins, chain};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use output::Format;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};
use traffic_record::TrafficRecord;

/// The exit code if no datapath is pinned.
const NO_DATAPATH: u8 = 3;
/// The exit code if a path in use gives no answer.
const NO_ANSWER: u8 = 4;
/// Peers that an error names.
const MAX_NAMED: usize = 10;

#[derive(Parser)]
#[command(
    version,
    about = "Shows the ipip datapath of this node",
    after_help = "Exit codes: 0 success, 1 error, 2 wrong usage, 3 no datapath is pinned, 4 a path in use gives no answer (probe)"
)]
struct Cli {
    /// Folder on bpffs where the datapath is pinned
    #[arg(long, global = true, env = "IPIP_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
    /// Format of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the entries of one map or of all maps
    Dump {
        /// Name of the map, in upper or lower case
        #[arg(value_parser = dump::parse_map)]
        map: Option<dump::Map>,
    },
    /// Show this node: attached programs, unreachable peers, dropped packets (also those that the kernel drops on
    /// uplinks and ipip0), problems that the agent reports
    Status {
        /// Folder in which the agent keeps its state
        #[arg(long, env = "IPIP_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Show each peer with its path, why no better one is used, prefixes and traffic
    Peers {
        /// Folder in which the agent keeps its state
        #[arg(long, env = "IPIP_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Show the bytes exchanged with each peer and between realms: free and billed, in total and in the last hour
    Traffic {
        /// Folder in which the agent keeps its state
        #[arg(long, env = "IPIP_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
    /// Ask peers on each path that could be used, and show which of them answer. Fails if a path in use gives none
    Probe(probe::Options),
    /// Show the number of dropped packets by reason
    Drops {
        /// Also show reasons that never occurred
        #[arg(long)]
        all: bool,
    },
    /// Write a kubeadm configuration for a cluster over several clouds, as YAML
    KubeadmConfig(kubeadm::Options),
    /// Print the completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
}

/// The paths in use to some peers give no answer.
#[derive(Debug, thiserror::Error)]
#[error("the path in use gives no answer, or is not accepted, to {}", named(.0))]
struct NoAnswer(Vec<String>);

fn main() -> ExitCode {
    let cli = Cli::parse();
    match answer(&cli).and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            if error.is::<NoAnswer>() {
                return ExitCode::from(NO_ANSWER);
            }
            match error.downcast_ref() {
                Some(Error::NotPinned(_) | Error::OtherVersion { .. }) => {
                    ExitCode::from(NO_DATAPATH)
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// The first names of a list, and how many more there are.
fn named(names: &[String]) -> String {
    let first = names[..names.len().min(MAX_NAMED)].join(", ");
    match names.len().saturating_sub(MAX_NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// The output of the verb.
fn answer(cli: &Cli) -> Result<String> {
    let pins = Pins::new(&cli.pin_root);
    match &cli.verb {
        Verb::Dump { map } => dump::dump(&open(&pins)?, *map, cli.output),
        Verb::Status { state_dir } => {
            let agent = AgentReport::read(state_dir)?;
            status::status(&pins, &open(&pins)?, agent, cli.output)
        }
        Verb::Peers { state_dir } => {
            let paths = agent_paths::read(state_dir);
            peers::peers(&open(&pins)?, &paths, cli.output)
        }
        Verb::Traffic { state_dir } => {
            let record = TrafficRecord::read(state_dir)?;
            traffic::traffic(&open(&pins)?, record, cli.output)
        }
        Verb::Probe(options) => {
            let (text, failed) = probe::probe(&open(&pins)?, options, cli.output)?;
            print(&text)?;
            match failed.is_empty() {
                true => Ok(String::new()),
                false => Err(NoAnswer(failed).into()),
            }
        }
        Verb::Drops { all } => drops::drops(&open(&pins)?, *all, cli.output),
        Verb::KubeadmConfig(_) if cli.output == Format::Json => {
            bail!("--output is json, but kubeadm-config writes YAML: leave the option out")
        }
        Verb::KubeadmConfig(options) => kubeadm::kubeadm_config(options),
        Verb::Completions { shell } => generate::completions(*shell),
        Verb::Man { folder } => generate::man_pages(folder).map(|()| String::new()),
    }
}

fn open(pins: &Pins) -> Result<Maps> {
    // Without the permission to read the folder, the datapath would seem to be absent.
    if let Err(error) = fs::metadata(pins.version_dir())
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        return Err(error)
            .with_context(|| format!("cannot read {}: run as root", pins.root().display()));
    }
    pins.expect_current()?;
    Maps::open(pins).map_err(|error| {
        let hint = match error {
            Error::NotPinned(_) => hint(pins),
            _ => None,
        };
        match hint {
            Some(hint) => anyhow::Error::new(error).context(hint),
            None => error.into(),
        }
    })
}

/// A likely reason why there is no datapath at the pin root.
fn hint(pins: &Pins) -> Option<String> {
    let root = pins.root();
    let folder = root.ancestors().find(|folder| folder.exists())?;
    if statfs(folder).ok()?.filesystem_type() == BPF_FS_MAGIC {
        return None;
    }
    Some(format!(
        "{} is not on a BPF file system (correct --pin-root; in a network namespace, use \
         `nsenter --net=FILE`: `ip netns exec` hides /sys/fs/bpf)",
        folder.display()
    ))
}

/// Prints the output. A reader that closes the pipe early (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the output"),
    }
}
