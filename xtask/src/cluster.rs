//! `cargo xtask cluster …`: a real Kubernetes cluster for interactive use.

use crate::{
    command::{as_root, cargo, run, target_dir},
    ebpf, image,
    setup::{self, Need},
    tools,
};
use anyhow::{Context, Result};
use std::{os::unix::process::CommandExt, path::Path};

const PROGRAM: &str = "cluster";
const DEMO: &str = "demo-kubernetes";

/// Prepares the machine for `up`; the program `cluster` of the lab does the rest.
pub fn cluster(args: &[String]) -> Result<()> {
    let program = target_dir()?.join("debug").join(PROGRAM);
    if args.first().is_some_and(|verb| verb == "up") {
        prepare()?;
    }
    if args.first().is_some_and(|verb| verb == "up") || !program.is_file() {
        ebpf::build(ebpf::Options::default())?;
        run(cargo().args(["build", "--package", "ipip-lab", "--bin", PROGRAM]))?;
    }
    let words = with_variables(&program, args)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Replaces this process: kubectl then has the terminal, and its exit code is returned.
    Err(as_root("env", &words).exec()).context("running env")
}

/// The demo on two clusters, one after the other.
pub fn demo() -> Result<()> {
    prepare()?;
    ebpf::build(ebpf::Options::default())?;
    run(cargo().args(["build", "--package", "ipip-lab", "--bin", DEMO]))?;
    let words = with_variables(&target_dir()?.join("debug").join(DEMO), &[])?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&mut as_root("env", &words))
}

/// Prepares the programs and images of a cluster with this project.
pub fn prepare() -> Result<()> {
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    image::lab()?;
    image::product(&[image::Arch::native()]).map(drop)
}

/// The arguments of `env`, because sudo passes on none of our variables.
fn with_variables(program: &Path, args: &[String]) -> Result<Vec<String>> {
    let mut words = vec![
        format!("{}={}", tools::VARIABLE, tools::root()?.display()),
        format!("{}={}", image::VARIABLE, image::folder()?.display()),
        program.display().to_string(),
    ];
    words.extend_from_slice(args);
    Ok(words)
}
