//! Runs each fuzz target of `fuzz/` for a bounded time, from the corpus in the repository.
//!
//! The stable compiler builds them with the flags of cargo-fuzz, but without sanitizers, which are unstable options of the
//! compiler: what they find is rare in parsers of safe Rust, while panics, overflows, hangs and wrong results are found without.

use crate::{
    command::{cargo, is_installed, run, target_dir, workspace},
    ebpf, setup, tools,
};
use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};

/// An input that takes longer is a fault.
const TIMEOUT_SECONDS: u32 = 10;
/// A target that uses more memory has a fault.
const MEMORY_MB: u32 = 2048;

/// The cargo profile of the targets.
const PROFILE: &str = "fuzz";
/// The variable that names the target.
const TARGET: &str = "IPIP_FUZZ_TARGET";
/// Coverage as libFuzzer reads it.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Installs the compiler of libFuzzer.
pub fn prepare() -> Result<()> {
    if is_installed("g++") {
        return Ok(());
    }
    setup::packages(&["g++"])
}

/// Builds the targets and runs each for some seconds, even after one has failed.
pub fn check(seconds: u32) -> Result<()> {
    let folder = target_dir()?.join("fuzz");
    // With `--target`, the flags are not those of build scripts.
    let triple = match tools::native_arch() {
        "arm64" => "aarch64-unknown-linux-gnu",
        _ => "x86_64-unknown-linux-gnu",
    };
    let mut build = cargo();
    build
        .args(["build", "--locked", "--package", "ipip-fuzz"])
        .args(["--features", "libfuzzer", "--profile", PROFILE])
        .args(["--target", triple, "--target-dir"])
        .arg(&folder)
        .env(ebpf::VARIABLE, ebpf::build(ebpf::Options::default())?)
        .env("RUSTFLAGS", FLAGS);
    run(&mut build)?;
    let program = folder.join(triple).join(PROFILE).join("fuzz");
    let failed_inputs = folder.join("failed");
    fs::create_dir_all(&failed_inputs)?;
    let mut failed = Vec::new();
    for name in names()? {
        println!("target {name}");
        let mut command = command(&program, &name, &folder)?;
        command.arg(format!("-max_total_time={seconds}"));
        command.arg(format!(
            "-artifact_prefix={}/{name}-",
            failed_inputs.display()
        ));
        if let Err(error) = run(&mut command) {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    ensure!(
        failed.is_empty(),
        "{} failed; remedy: move the inputs in {} to fuzz/corpus/ and correct the parsers",
        failed.join(", "),
        failed_inputs.display()
    );
    Ok(())
}

/// The targets, which are named as their corpora.
fn names() -> Result<Vec<String>> {
    let corpus = workspace().join("fuzz/corpus");
    let mut names = Vec::new();
    for entry in fs::read_dir(&corpus).with_context(|| corpus.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The program for one target. It writes new inputs to the first of its folders, and only reads that of the repository.
fn command(program: &Path, name: &str, folder: &Path) -> Result<Command> {
    let found = folder.join("found").join(name);
    fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
    let mut command = Command::new(program);
    command
        .env(TARGET, name)
        .args(["-print_final_stats=1", "-verbosity=0"])
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(found)
        .arg(workspace().join("fuzz/corpus").join(name));
    Ok(command)
}
