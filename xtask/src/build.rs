//! Building everything: the programs first, because the host side embeds them.

use crate::{
    command::{cargo, run},
    ebpf,
};
use anyhow::Result;

const HOST_CRATES: [&str; 5] = [
    "--workspace",
    "--exclude",
    "ipip-ebpf",
    "--exclude",
    "xtask",
];

/// The programs and every host binary.
pub fn build(release: bool) -> Result<()> {
    let options = ebpf::Options {
        release,
        ..Default::default()
    };
    ebpf::build(options)?;
    let mut command = cargo();
    command.arg("build").args(HOST_CRATES);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    static_plugin(release)
}

/// As a debug [`build`], with the tests in the same go so that each dependency is built once.
pub fn for_tests() -> Result<()> {
    ebpf::build(ebpf::Options::default())?;
    run(cargo().arg("build").args(HOST_CRATES).arg("--all-targets"))?;
    static_plugin(false)
}

/// Links the CNI plugin anew without any shared library: it runs on hosts of any distribution, and
/// no loader delays its start, which each pod waits for twice.
fn static_plugin(release: bool) -> Result<()> {
    let mut command = cargo();
    command.args(["rustc", "--package", "ipip-cni", "--bin", "ipip"]);
    if release {
        command.arg("--release");
    }
    command.args(["--", "-C", "target-feature=+crt-static"]);
    run(command.args(["-C", "relocation-model=static"]))
}
