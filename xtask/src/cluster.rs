//! `cargo xtask cluster …`: a real Kubernetes cluster for a person.

use crate::{
    command::{as_root, cargo, run, target_dir},
    ebpf, image,
    setup::setup,
    tools,
};
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

const PROGRAM: &str = "cluster";

/// Prepares what `up` needs, and hands the rest to the program that knows the lab.
pub fn cluster(args: &[String]) -> Result<()> {
    let program = target_dir()?.join("debug").join(PROGRAM);
    if args.first().is_some_and(|verb| verb == "up") {
        setup(false)?;
        image::lab()?;
    }
    if args.first().is_some_and(|verb| verb == "up") || !program.is_file() {
        ebpf::build(ebpf::Options::default())?;
        run(cargo().args(["build", "--package", "ipip-tests", "--bin", PROGRAM]))?;
    }
    // `env`, because sudo passes none of ours on.
    let variables = [
        format!("{}={}", tools::VARIABLE, tools::root()?.display()),
        format!("{}={}", image::VARIABLE, image::folder()?.display()),
        program.display().to_string(),
    ];
    let words: Vec<&str> = variables.iter().chain(args).map(String::as_str).collect();
    // In our place, so that kubectl has the terminal and its exit code is ours.
    Err(as_root("env", &words).exec()).context("running env")
}
