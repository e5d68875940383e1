//! `cargo xtask setup`: installs what is missing, found by looking.

use crate::{
    command::{as_root, cargo, is_installed, is_root, output, run, shown},
    ebpf,
    toolchain::{NIGHTLY, Toolchain},
};
use anyhow::{Result, bail};
use std::{fs, path::Path, process::Command};

const CARGO_DENY: &str = "0.20.2";

const BPFFS: &str = "/sys/fs/bpf";

/// A program that the project runs, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 7] = [
    ("cc", "gcc libc6-dev"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("ethtool", "ethtool"),
    // The tests speak CRI, whose messages are made from its protobufs.
    ("protoc", "protobuf-compiler"),
];

/// Where distributions and Kubernetes put the reference CNI plugins.
const HOST_LOCAL: [&str; 2] = ["/usr/lib/cni/host-local", "/opt/cni/bin/host-local"];

/// Installs what is missing; with `dry_run` it only says what it would do.
pub fn setup(dry_run: bool) -> Result<()> {
    let setup = Setup { dry_run };
    let mut packages = missing_packages();
    let wants_toolchain = Toolchain::find().is_none();

    if (!packages.is_empty() || wants_toolchain) && is_installed("apt-get") {
        setup.apt(&["update", "--quiet"])?;
        if wants_toolchain && has_package("libstd-rust-web-dev-bpf") {
            packages.extend(["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"]);
        }
        if !packages.is_empty() {
            let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
            setup.apt(&[&install[..], &packages].concat())?;
        }
    } else if !packages.is_empty() {
        bail!(
            "cannot install on {}: only apt (Debian 12, Ubuntu 24.04) is known here\n\
             remedy: install what these Debian packages bring, then try again: {}",
            distribution(),
            packages.join(" ")
        );
    }
    let by_apt = packages.contains(&"libstd-rust-web-dev-bpf");
    if wants_toolchain && !by_apt {
        setup.nightly()?;
    }
    setup.components()?;
    setup.cargo_tools()?;
    setup.bpffs()
}

/// Installs these Debian packages, which not every command needs.
pub fn packages(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    if !is_installed("apt-get") {
        bail!(
            "cannot install on {}: only apt is known here\n\
             remedy: install what these Debian packages bring: {}",
            distribution(),
            names.join(" ")
        );
    }
    let setup = Setup { dry_run: false };
    setup.apt(&["update", "--quiet"])?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    setup.apt(&[&install[..], names].concat())
}

struct Setup {
    dry_run: bool,
}

impl Setup {
    fn step(&self, why: &str, command: &mut Command) -> Result<()> {
        if self.dry_run {
            println!("would run: {}   # {why}", shown(command));
            return Ok(());
        }
        eprintln!("setup: {why}");
        run(command)
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let why = match is_root() {
            true => "packages are missing",
            false => "packages are missing, and root (through sudo) installs them",
        };
        // `env`, because sudo passes none of ours on.
        let noninteractive = ["DEBIAN_FRONTEND=noninteractive", "apt-get"];
        let mut command = as_root("env", &[&noninteractive, args].concat());
        self.step(why, &mut command)
    }

    fn nightly(&self) -> Result<()> {
        if !is_installed("rustup") {
            bail!(
                "no Rust toolchain here has `core` for BPF, apt has no \
                 libstd-rust-web-dev-bpf, and rustup is absent\n\
                 remedy: install rustup (https://rustup.rs), then try again"
            );
        }
        let mut command = Command::new("rustup");
        command.args(["toolchain", "install", NIGHTLY]).args([
            "--profile",
            "minimal",
            "--component",
            "rust-src,clippy",
        ]);
        self.step("no Rust toolchain has `core` for BPF", &mut command)
    }

    /// rustfmt and clippy of the toolchain that builds the host side.
    fn components(&self) -> Result<()> {
        for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
            if output(cargo().args([subcommand, "--version"])).is_none() {
                let mut command = Command::new("rustup");
                command.args(["component", "add", component]);
                self.step(&format!("cargo {subcommand} is absent"), &mut command)?;
            }
        }
        Ok(())
    }

    fn cargo_tools(&self) -> Result<()> {
        if !is_installed("bpf-linker") {
            self.step("bpf-linker is absent", &mut ebpf::linker_install())?;
        }
        if !is_installed("cargo-deny") {
            let mut command = cargo();
            command.args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked"]);
            self.step("cargo-deny is absent (some minutes)", &mut command)?;
        }
        Ok(())
    }

    fn bpffs(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if is_bpffs_mounted(&mounts) {
            return Ok(());
        }
        let mut command = as_root("mount", &["-t", "bpf", "bpf", BPFFS]);
        self.step("the folder of the pins is not mounted", &mut command)
    }
}

fn missing_packages() -> Vec<&'static str> {
    let mut packages: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .flat_map(|(_, packages)| packages.split(' '))
        .collect();
    if !HOST_LOCAL.iter().any(|path| Path::new(path).is_file()) {
        packages.push("containernetworking-plugins");
    }
    packages
}

/// Whether apt can install `package`, by the lists that it has.
fn has_package(package: &str) -> bool {
    output(Command::new("apt-cache").args(["show", package])).is_some()
}

fn distribution() -> String {
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("an unknown distribution", |name| name.trim_matches('"'))
        .to_owned()
}

fn is_bpffs_mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_counts_as_mounted_only_at_the_folder_of_the_pins() {
        assert!(is_bpffs_mounted(
            "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0\n"
        ));
        assert!(!is_bpffs_mounted("bpf /tmp/bpf bpf rw 0 0\n"));
        assert!(!is_bpffs_mounted("tmpfs /sys/fs/bpf tmpfs rw 0 0\n"));
    }
}
