//! The area `lint`: each check counts as one.

mod subjects;

use crate::{
    build,
    command::{cargo, output, run, workspace},
    ebpf,
    setup::{self, Need},
    tally::Tally,
};
use anyhow::Result;
use std::{path::PathBuf, process::Command};

/// How one check ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

type Check = fn() -> Outcome;

/// Installs the programs that check.
pub fn prepare() -> Result<()> {
    setup::require(&[Need::Tests, Need::Lint])
}

/// Runs every check, even after one has failed. Returns the counts and the failures.
pub fn lint() -> (Tally, Vec<String>) {
    let checks: [(&str, Check); 11] = [
        ("fmt", fmt),
        ("clippy", clippy),
        ("clippy of the demo", demo_clippy),
        ("clippy of the programs", || ebpf_clippy(false)),
        ("clippy of the programs with log", || ebpf_clippy(true)),
        ("rustdoc", rustdoc),
        ("deny: bans, licenses, sources", deny),
        ("deny: advisories", advisories),
        ("typos", typos),
        ("taplo", taplo),
        ("commit subjects", subjects::check),
    ];
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    for (name, check) in checks {
        let ended = match check() {
            Outcome::Passed => {
                tally.passed += 1;
                "ok".to_owned()
            }
            Outcome::Failed(why) => {
                tally.failed += 1;
                failures.push(format!("{name}: {why}"));
                format!("FAILED: {why}")
            }
            Outcome::Skipped(why) => {
                tally.skipped += 1;
                format!("skipped: {why}")
            }
        };
        println!("check {name} ... {ended}");
    }
    (tally, failures)
}

fn fmt() -> Outcome {
    outcome(run(cargo().args(["fmt", "--all", "--check"])))
}

fn clippy() -> Outcome {
    let hosts = [
        "clippy",
        "--workspace",
        "--exclude",
        "ipip-ebpf",
        "--all-targets",
    ];
    outcome(run(cargo().args(hosts).args(["--", "-D", "warnings"])))
}

/// The demo is built without the client of the Kubernetes API.
fn demo_clippy() -> Outcome {
    let mut command = cargo();
    command.arg("clippy").args(build::DEMO);
    outcome(run(command.args(["--", "-D", "warnings"])))
}

fn ebpf_clippy(debug_log: bool) -> Outcome {
    match ebpf::clippy(debug_log) {
        Ok(mut command) => outcome(run(&mut command)),
        Err(why) => Outcome::Skipped(why),
    }
}

fn rustdoc() -> Outcome {
    let hosts = ["doc", "--workspace", "--exclude", "ipip-ebpf", "--no-deps"];
    outcome(run(cargo().args(hosts).env("RUSTDOCFLAGS", "-D warnings")))
}

fn deny() -> Outcome {
    outcome(run(
        cargo().args(["deny", "check", "bans", "licenses", "sources"])
    ))
}

/// Needs the advisory database: fetched now, or the one of an earlier run.
fn advisories() -> Outcome {
    // Without a network git can wait for minutes.
    let mut fetch = Command::new("timeout");
    fetch
        .args(["60", "cargo", "deny", "fetch", "db"])
        .current_dir(workspace());
    if output(&mut fetch).is_some() {
        return outcome(run(cargo().args(["deny", "check", "advisories"])));
    }
    if has_database() {
        eprintln!("the advisory database cannot be fetched: using that of an earlier run");
        return outcome(run(cargo().args([
            "deny",
            "check",
            "--disable-fetch",
            "advisories",
        ])));
    }
    Outcome::Skipped("the advisory database cannot be fetched (no network?)".into())
}

fn typos() -> Outcome {
    outcome(setup::typos().and_then(|program| run(Command::new(program).current_dir(workspace()))))
}

fn taplo() -> Outcome {
    outcome(setup::taplo().and_then(|program| {
        let mut command = Command::new(program);
        run(command
            .args(["fmt", "--check", "--diff"])
            .current_dir(workspace()))
    }))
}

fn has_database() -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let databases = home.and_then(|home| home.join("advisory-dbs").read_dir().ok());
    databases.is_some_and(|mut entries| entries.any(|e| e.is_ok_and(|e| e.path().is_dir())))
}

fn outcome(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}
