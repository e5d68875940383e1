//! `cargo xtask setup`, and the part of it that each other command runs first.

mod lint_tools;

pub use lint_tools::{taplo, typos};

use crate::{
    command::{as_root, is_installed, is_root, output, run, shown},
    ebpf,
    toolchain::{NIGHTLY, Toolchain},
};
use anyhow::{Result, bail};
use std::{cell::Cell, collections::BTreeSet, fs, path::Path, process::Command};

const BPFFS: &str = "/sys/fs/bpf";

/// Debian's `core` for BPF.
const BPF_CORE: &str = "libstd-rust-web-dev-bpf";
/// The clippy of Debian's compiler.
const BPF_CLIPPY: &str = "rust-web-clippy";

/// The CNI plugin host-local in the folders of distributions and of Kubernetes.
const HOST_LOCAL: [&str; 2] = ["/usr/lib/cni/host-local", "/opt/cni/bin/host-local"];

/// A requirement of a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    /// A C compiler and linker.
    Compiler,
    /// A Rust toolchain that builds for BPF, and bpf-linker.
    Ebpf,
    /// The programs that simulated clouds are made of, and the CNI plugin host-local.
    Lab,
    /// The file system of pinned programs and maps, mounted.
    Bpffs,
    /// Programs that only tests need.
    Tests,
    /// Programs that check the sources.
    Lint,
}

impl Need {
    /// All of them, in the order in which they are installed.
    const ALL: [Self; 6] = [
        Self::Compiler,
        Self::Ebpf,
        Self::Lab,
        Self::Bpffs,
        Self::Tests,
        Self::Lint,
    ];

    /// Programs, and the Debian packages that bring them.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Compiler => &[("cc", "gcc libc6-dev")],
            Self::Lab => &[
                ("nft", "nftables"),
                ("ip", "iproute2"),
                ("nsenter", "util-linux"),
            ],
            // The tests speak CRI, whose messages are generated from protobuf files.
            Self::Tests => &[("protoc", "protobuf-compiler"), ("ethtool", "ethtool")],
            Self::Ebpf | Self::Bpffs | Self::Lint => &[],
        }
    }
}

/// `cargo xtask setup`: installs everything that any command needs; with `dry_run` it only prints
/// what it would run.
pub fn setup(dry_run: bool) -> Result<()> {
    Setup::new(dry_run).require(&Need::ALL)
}

/// Installs the missing parts of `needs`.
pub fn require(needs: &[Need]) -> Result<()> {
    Setup::new(false).require(needs)
}

/// Installs these Debian packages.
pub fn packages(names: &[&str]) -> Result<()> {
    Setup::new(false).packages(names)
}

struct Setup {
    dry_run: bool,
    /// Whether apt's lists have been refreshed.
    updated: Cell<bool>,
}

impl Setup {
    fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            updated: Cell::new(false),
        }
    }

    fn require(&self, needs: &[Need]) -> Result<()> {
        self.packages(&missing_packages(needs))?;
        if needs.contains(&Need::Ebpf) {
            self.bpf_toolchain()?;
            if !is_installed("bpf-linker") {
                let why = "bpf-linker is absent (half a minute)";
                self.step(why, &mut ebpf::linker_install())?;
            }
        }
        if needs.contains(&Need::Bpffs) {
            self.bpffs()?;
        }
        if needs.contains(&Need::Lint) {
            self.lint()?;
        }
        Ok(())
    }

    fn packages(&self, names: &[&str]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        if !is_installed("apt-get") {
            bail!(
                "cannot install on {}: only apt (Debian 12, Ubuntu 24.04) is supported\n\
                 remedy: install what these Debian packages contain, then try again: {}",
                distribution(),
                names.join(" ")
            );
        }
        self.update()?;
        let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
        self.apt(&[&install[..], names].concat())
    }

    /// Installs Debian's compiler if apt has it, and a rustup nightly otherwise.
    fn bpf_toolchain(&self) -> Result<()> {
        if Toolchain::find().is_some() {
            return Ok(());
        }
        if is_installed("apt-get") {
            self.update()?;
            if has_package(BPF_CORE) {
                return self.packages(&["rustc-web", BPF_CORE]);
            }
        }
        self.nightly()
    }

    fn nightly(&self) -> Result<()> {
        if !is_installed("rustup") {
            bail!(
                "no Rust toolchain here has `core` for BPF, apt has no {BPF_CORE}, and rustup is \
                 absent\n\
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

    fn bpffs(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if is_bpffs_mounted(&mounts) {
            return Ok(());
        }
        let mut command = as_root("mount", &["-t", "bpf", "bpf", BPFFS]);
        self.step("the folder of pins is not mounted", &mut command)
    }

    /// Shows `command` with its reason, and runs it unless this is a dry run.
    fn step(&self, why: &str, command: &mut Command) -> Result<()> {
        if self.dry_run {
            println!("would run: {}   # {why}", shown(command));
            return Ok(());
        }
        eprintln!("setup: {why}");
        run(command)
    }

    fn update(&self) -> Result<()> {
        if self.updated.replace(true) {
            return Ok(());
        }
        self.apt(&["update", "--quiet"])
    }

    fn apt(&self, args: &[&str]) -> Result<()> {
        let why = if is_root() {
            "packages are missing"
        } else {
            "packages are missing, and root (through sudo) installs them"
        };
        // Through `env`, because sudo passes on none of our variables.
        let noninteractive = ["DEBIAN_FRONTEND=noninteractive", "apt-get"];
        let mut command = as_root("env", &[&noninteractive, args].concat());
        self.step(why, &mut command)
    }
}

fn missing_packages(needs: &[Need]) -> Vec<&'static str> {
    let programs = needs.iter().flat_map(|need| need.programs());
    let mut packages: BTreeSet<_> = programs
        .filter(|(program, _)| !is_installed(program))
        .flat_map(|(_, packages)| packages.split(' '))
        .collect();
    let has_host_local = HOST_LOCAL.iter().any(|path| Path::new(path).is_file());
    if needs.contains(&Need::Lab) && !has_host_local {
        packages.insert("containernetworking-plugins");
    }
    packages.into_iter().collect()
}

/// Whether apt's lists contain `package`.
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
