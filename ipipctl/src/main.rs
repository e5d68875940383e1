//! `ipipctl`: looks into the datapath of a node through its pins. No agent is asked, so it works
//! when there is none. `kubeadm-config` writes what a cluster begins with.
//!
//! Exit codes: 0 fine, 1 an error, 2 wrong usage, 3 no datapath is pinned there.

mod drops;
mod dump;
mod entries;
mod kubeadm;
mod names;
mod output;
mod peers;
mod rows;
mod status;
#[cfg(test)]
mod testdata;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use ipip_datapath::{DEFAULT_PIN_ROOT, Error, Maps, Pins};
use output::Format;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Exit code where no datapath is pinned.
const NO_DATAPATH: u8 = 3;

#[derive(Parser)]
#[command(
    version,
    about = "Looks into the ipip datapath of this node through its pins",
    after_help = "Exit codes: 0 fine, 1 an error, 2 wrong usage, 3 no datapath is pinned there"
)]
struct Cli {
    /// Folder on bpffs where the datapath is pinned
    #[arg(long, global = true, env = "IPIP_PIN_ROOT", default_value = DEFAULT_PIN_ROOT)]
    pin_root: PathBuf,
    /// A table for people or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the entries of a map, or of all
    Dump {
        /// Name of the map, in upper or lower case
        #[arg(value_parser = dump::parse_map)]
        map: Option<dump::Map>,
    },
    /// Show this node: what is attached, who is reachable, how much is dropped
    Status,
    /// Show each peer: its path, its prefixes, its traffic
    Peers,
    /// Show how many packets were dropped for which reason
    Drops {
        /// Also the reasons that never occurred
        #[arg(long)]
        all: bool,
    },
    /// Write a kubeadm configuration for a cluster over several clouds, as YAML
    KubeadmConfig(kubeadm::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match answer(&cli).and_then(|text| print(&text)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(Error::NotPinned(_)) => ExitCode::from(NO_DATAPATH),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// What the verb has to say.
fn answer(cli: &Cli) -> Result<String> {
    let pins = Pins::new(&cli.pin_root);
    match &cli.verb {
        Verb::Dump { map } => dump::dump(&open(&pins)?, *map, cli.output),
        Verb::Status => status::status(&pins, &open(&pins)?, cli.output),
        Verb::Peers => peers::peers(&open(&pins)?, cli.output),
        Verb::Drops { all } => drops::drops(&open(&pins)?, *all, cli.output),
        Verb::KubeadmConfig(_) if cli.output == Format::Json => {
            bail!("kubeadm-config writes YAML: leave out `--output json`")
        }
        Verb::KubeadmConfig(options) => kubeadm::kubeadm_config(options),
    }
}

fn open(pins: &Pins) -> Result<Maps> {
    // Without the permission to look, everything would seem absent.
    if let Err(error) = fs::metadata(pins.version_dir())
        && error.kind() == io::ErrorKind::PermissionDenied
    {
        return Err(error)
            .with_context(|| format!("cannot look into {}: run as root", pins.root().display()));
    }
    Maps::open(pins).map_err(|error| match other_versions(pins) {
        Some(others) if matches!(error, Error::NotPinned(_)) => {
            anyhow::Error::new(error).context(format!(
                "{} holds the datapath of another version ({others}): use the ipipctl of that \
                 version",
                pins.root().display()
            ))
        }
        _ => error.into(),
    })
}

/// The versions whose datapath is pinned at the same root.
fn other_versions(pins: &Pins) -> Option<String> {
    let mut versions: Vec<String> = fs::read_dir(pins.root())
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| pins.version_dir() != pins.root().join(name))
        .collect();
    versions.sort();
    (!versions.is_empty()).then(|| versions.join(", "))
}

/// Prints; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing the answer"),
    }
}
