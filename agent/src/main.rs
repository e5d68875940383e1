//! `ipip-agent`: reads its settings, then runs, checks or uninstalls.

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, Command};
use ipip_agent::{
    commands::{check::check, prepare::prepare, uninstall::uninstall},
    config::{self, Config, LogFormat},
    daemon::event_loop,
};
use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<()> {
    let matches = config::with_flags(command()).get_matches();
    let host_name = nix::unistd::gethostname().context("cannot read the host name")?;
    let config = config::load(&matches, &host_name.to_string_lossy())?;
    if matches.get_flag("check") {
        println!("{}", check(&config)?);
        return Ok(());
    }
    start_log(&config);
    if matches.subcommand_matches("uninstall").is_some() {
        return uninstall(&config).or_else(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!("not everything is removed: {}", texts.join("; "))
        });
    }
    if matches.subcommand_matches("stay").is_some() {
        return Ok(runtime()?.block_on(event_loop::until_stopped())?);
    }
    if matches.subcommand_matches("prepare").is_some() {
        return Ok(prepare(&config)?);
    }
    runtime()?.block_on(event_loop::run(config))?;
    Ok(())
}

/// Netlink and map calls take microseconds and belong to one thread's network namespace.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn command() -> Command {
    Command::new("ipip-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps the ipip datapath of this node true to the nodes of the cluster")
        .after_help("Settings: the file of --config, then the environment, then flags; the last one wins")
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Judge configuration and inventory, say what is wrong, and change nothing"),
        )
        .subcommand(Command::new("prepare").about(
            "Do what needs more rights than the agent has: mount bpffs, turn on forwarding, make ipip0, pass on the API server's address",
        ))
        .subcommand(Command::new("uninstall").about(
            "Remove programs, maps, ipip0, routes and rules from this node; its pods lose their network",
        ))
        .subcommand(Command::new("stay").about(
            "Do nothing until stopped: for a DaemonSet whose init container has done the work",
        ))
}

fn start_log(config: &Config) {
    // It was judged with the other settings.
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
