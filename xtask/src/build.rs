//! Building: the eBPF object first, because the host side embeds it.

use crate::{
    command::{cargo, run, target_dir},
    ebpf,
};
use anyhow::Result;
use std::path::Path;

/// The crates of the host side, without those of `cargo xtask` itself and without the fuzz targets, which turn on features.
const HOST_CRATES: [&str; 9] = [
    "--workspace",
    "--exclude",
    "ipip-ebpf",
    "--exclude",
    "xtask",
    "--exclude",
    "oci-image",
    "--exclude",
    "ipip-fuzz",
];

/// The crates that the tests and the build before them select. Both must select the same crates: another
/// selection gives dependencies other features, and cargo would build them and their dependents again.
pub const TESTED_CRATES: [&str; 3] = ["--workspace", "--exclude", "ipip-ebpf"];

/// The programs that the demo runs.
pub const DEMO: [&str; 17] = [
    "--no-default-features",
    "--package",
    "ipip-agent",
    "--bin",
    "ipip-agent",
    "--package",
    "ipip-cni",
    "--bin",
    "ipip",
    "--package",
    "ipipctl",
    "--bin",
    "ipipctl",
    "--package",
    "ipip-lab",
    "--bin",
    "demo",
];

/// The programs that the benchmark runs.
const BENCH: [&str; 8] = [
    "--package",
    "ipip-bench",
    "--package",
    "ipip-agent",
    "--package",
    "ipip-cni",
    "--package",
    "ipipctl",
];

/// `cargo xtask build`: the object and every host binary.
pub fn build(release: bool) -> Result<()> {
    build_crates(&HOST_CRATES, release)
}

/// Builds only the programs of the benchmark, optimised as they are released.
pub fn for_bench() -> Result<()> {
    build_crates(&BENCH, true)
}

fn build_crates(crates: &[&str], release: bool) -> Result<()> {
    let options = ebpf::Options {
        release,
        ..Default::default()
    };
    let object = ebpf::build(options)?;
    let object = release.then_some(&*object);
    let mut command = cargo();
    command.arg("build").args(crates);
    if let Some(object) = object {
        command.arg("--release").env(ebpf::VARIABLE, object);
    }
    run(&mut command)?;
    static_plugin(object)
}

/// `cargo xtask build-ebpf`: the object alone.
pub fn object(options: ebpf::Options) -> Result<()> {
    ebpf::build(options).map(drop)
}

/// Builds everything without optimisation, with the tests in the same call so that each dependency is built once.
pub fn for_tests() -> Result<()> {
    ebpf::build(ebpf::Options::default())?;
    run(cargo()
        .arg("build")
        .args(TESTED_CRATES)
        .arg("--all-targets"))?;
    static_plugin(None)
}

/// The agent and the plugin of the next version, for the tests of upgrades.
const NEXT_ABI: [&str; 9] = [
    "--no-default-features",
    "--package",
    "ipip-agent",
    "--package",
    "ipip-cni",
    "--package",
    "ipip-datapath",
    "--features",
    "ipip-datapath/next-abi",
];

/// Builds agent and plugin with another ABI version, without the client of the Kubernetes API, into `target/next`.
pub fn next_abi() -> Result<()> {
    let object = ebpf::build(ebpf::Options {
        next_abi: true,
        ..ebpf::Options::default()
    })?;
    let folder = target_dir()?.join("next");
    run(cargo()
        .arg("build")
        .args(NEXT_ABI)
        .arg("--target-dir")
        .arg(folder)
        .env(ebpf::VARIABLE, object))
}

/// Builds only the programs of the demo, without the client of the Kubernetes API.
pub fn for_demo() -> Result<()> {
    ebpf::build(ebpf::Options::default())?;
    run(cargo().arg("build").args(DEMO))
}

/// Links the CNI plugin again, without any shared library: it runs on hosts of any distribution, and
/// no loader delays its start, which each pod waits for twice (ADD and DEL). A release embeds `release_object`.
fn static_plugin(release_object: Option<&Path>) -> Result<()> {
    let mut command = cargo();
    command.args(["rustc", "--package", "ipip-cni", "--bin", "ipip"]);
    if let Some(object) = release_object {
        command.arg("--release").env(ebpf::VARIABLE, object);
    }
    command.args(["--", "-C", "target-feature=+crt-static"]);
    run(command.args(["-C", "relocation-model=static"]))
}
