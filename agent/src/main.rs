//! `ipip-agent`: reads its settings and runs the command of its arguments.

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ipip_agent::{
    commands::{check::check, prepare::prepare, uninstall::uninstall},
    config::{self, Config, LogFormat},
    daemon::{event_loop, signals},
    requirements,
};
use ipip_datapath::chain;
use std::{
    fmt::Display,
    fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run(&command().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> Result<()> {
    if matches.get_flag("print-default-config") {
        print!("{}", config::default_file());
        return Ok(());
    }
    if let Some(("man", arguments)) = matches.subcommand() {
        let folder: &PathBuf = arguments.get_one("folder").context("no folder")?;
        return man_pages(folder);
    }
    let host_name = nix::unistd::gethostname().context("cannot read the host name")?;
    let config = config::load(matches, &host_name.to_string_lossy())?;
    if !matches!(matches.subcommand_name(), Some("uninstall" | "stay")) {
        requirements::check_kernel()?;
    }
    if matches.get_flag("check") {
        println!("{}", check(&config)?);
        return Ok(());
    }
    start_log(&config);
    match matches.subcommand_name() {
        Some("uninstall") => complete("not everything is removed", uninstall(&config)),
        Some("prepare") => complete("not everything is prepared", prepare(&config)),
        Some("stay") => Ok(runtime()?.block_on(signals::until_stopped())?),
        _ => Ok(runtime()?.block_on(event_loop::run(config))?),
    }
}

/// Joins the errors of steps that do not stop each other; each is one line.
fn complete(otherwise: &str, done: Result<(), Vec<impl Display>>) -> Result<()> {
    done.or_else(|errors| {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        bail!("{otherwise}:\n{}", texts.join("\n"))
    })
}

/// One thread: netlink and map calls take microseconds, and a network namespace belongs to a thread.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn command() -> Command {
    let command = Command::new("ipip-agent")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keeps the ipip datapath of this node in sync with the nodes of the cluster")
        .after_help("Settings are read from the file of --config, then the environment, then flags; the last one wins")
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Validate configuration and inventory, print every error, and change nothing"),
        )
        .arg(
            Arg::new("print-default-config")
                .long("print-default-config")
                .action(ArgAction::SetTrue)
                .help("Print a configuration file that documents every setting and its default"),
        )
        .subcommand(Command::new("prepare").about(
            "Run the steps that need more privileges than the agent: mount bpffs, enable IP forwarding, create ipip0, copy the API server's address from the kubelet, write a key for probes, keep network managers away, clean up after other networks",
        ))
        .subcommand(Command::new("uninstall").about(
            "Remove programs, maps, ipip0, routes and rules from this node; its pods lose their network",
        ))
        .subcommand(Command::new("stay").about(
            "Wait until stopped, for a DaemonSet whose init container has completed its work",
        ));
    config::with_flags(command.subcommand(man_command()))
}

/// A hidden command, for building packages.
fn man_command() -> Command {
    let folder = Arg::new("folder")
        .required(true)
        .value_parser(value_parser!(PathBuf));
    Command::new("man")
        .hide(true)
        .about("Write the man pages into a folder")
        .arg(folder)
}

/// Writes `ipip-agent.1` and a man page for each command into `folder`.
fn man_pages(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command(), folder))
        .with_context(|| format!("cannot write man pages into {}", folder.display()))
}

fn start_log(config: &Config) {
    // The filter has been validated with the other settings.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn man_pages_name_every_command_and_every_flag() {
        let folder = tempfile::tempdir().unwrap();
        man_pages(folder.path()).unwrap();
        let page = fs::read_to_string(folder.path().join("ipip-agent.1")).unwrap();
        let names = |text: &str| page.contains(&text.replace('-', "\\-"));
        let command = command();
        for flag in command.get_arguments() {
            let flag = flag.get_long().unwrap_or_default();
            assert!(names(flag), "{flag}");
        }
        for shown in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = shown.get_name();
            assert!(names(name), "{name}");
            let own_page = folder.path().join(format!("ipip-agent-{name}.1"));
            assert!(own_page.exists(), "{name}");
        }
    }
}
