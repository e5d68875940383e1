//! Building the eBPF object.

use crate::{
    command::{cargo_home, is_installed, output, quick_install, run, shown, target_dir, workspace},
    setup::{self, Need},
    toolchain::{TARGET, Toolchain},
};
use anyhow::{Context, Result};
use clap::Args;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The bpf-linker that reads LLVM 22 bitcode; 0.11 and later want LLVM 23.
const BPF_LINKER: &str = "0.10.3";

/// Separates rustc flags in CARGO_ENCODED_RUSTFLAGS.
const UNIT_SEPARATOR: &str = "\x1f";

/// The variable that names the object to embed, if it is not `target/ebpf/ipip.o`.
pub const VARIABLE: &str = "IPIP_EBPF_OBJECT";

/// How to build the object.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Options {
    /// Strip the DWARF sections, as in a release. Instructions and BTF are the same with and without:
    /// programs are always optimised, because the verifier checks them
    #[arg(long)]
    pub release: bool,
    /// Turn on the log lines of the programs (feature `debug`); not for a release
    #[arg(long, conflicts_with = "release")]
    pub debug_log: bool,
    /// Build with another time to live of outer headers, for the test that changes this constant
    #[arg(skip)]
    pub other_outer_ttl: bool,
    /// Build with another ABI version, for the tests of upgrades
    #[arg(skip)]
    pub next_abi: bool,
}

/// Prepares the machine and builds; leaves the object in `target/ebpf/ipip.o` and returns its path.
/// With `release`, `other_outer_ttl` or `next_abi` the file has another name, so that only builds which [name it](VARIABLE)
/// embed that object, and all others need not be repeated.
pub fn build(options: Options) -> Result<PathBuf> {
    setup::require(&[Need::Compiler, Need::Ebpf])?;
    let toolchain = Toolchain::require()?;
    eprintln!("eBPF toolchain: {toolchain}");

    let folder = target_dir()?.join("ebpf");
    let build = folder.join("build");
    run(&mut cargo(&toolchain, "build", &build, options))?;

    let mut object = build.join(TARGET).join("release/ipip-ebpf");
    if options.release {
        object = strip(&toolchain, &object)?;
    }
    let name = if options.other_outer_ttl {
        "other-outer-ttl.o"
    } else if options.next_abi {
        "next-abi.o"
    } else if options.release {
        "release.o"
    } else {
        "ipip.o"
    };
    let shipped = folder.join(name);
    replace_if_changed(&object, &shipped)?;
    eprintln!("eBPF object: {}", shipped.display());
    Ok(shipped)
}

/// Builds the object of another copy of the workspace, at `tree`. Returns its path.
pub fn build_faulty(tree: &Path) -> Result<PathBuf> {
    let toolchain = Toolchain::require()?;
    let build = target_dir()?.join("faults/build");
    let mut command = cargo(&toolchain, "build", &build, Options::default());
    run(command.arg("--manifest-path").arg(tree.join("Cargo.toml")))?;
    Ok(build.join(TARGET).join("release/ipip-ebpf"))
}

/// Clippy for the programs with the options of [`build`], with or without their log lines.
///
/// # Errors
/// A sentence that says why this machine cannot run it.
pub fn clippy(debug_log: bool) -> Result<Command, String> {
    let toolchain = Toolchain::find().ok_or("no toolchain has a core for BPF")?;
    let folder = target_dir()
        .map_err(|e| format!("{e:#}"))?
        .join("ebpf/lint");
    let mut command = toolchain.clippy()?;
    let options = Options {
        debug_log,
        ..Options::default()
    };
    configure(&mut command, &folder, options);
    command.args(["--", "-D", "warnings"]);
    Ok(command)
}

fn cargo(toolchain: &Toolchain, subcommand: &str, folder: &Path, options: Options) -> Command {
    let mut command = toolchain.cargo(subcommand);
    configure(&mut command, folder, options);
    command
}

/// Sets one profile for build and clippy: one optimised unit with the debug information from which
/// bpf-linker makes BTF. bpf-linker does the link-time optimisation, so rustc must not.
fn configure(command: &mut Command, folder: &Path, options: Options) {
    // BTF names source files; the names must not depend on this machine's folders.
    let sources = [(workspace(), "."), (&cargo_home(), "/cargo")]
        .map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display()));
    let flags = [
        "-Clinker=bpf-linker",
        "-Clink-arg=--btf",
        "-Cdebuginfo=2",
        &sources[0],
        &sources[1],
    ];
    command
        .args(["--package", "ipip-ebpf", "--release", "--target-dir"])
        .arg(folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(UNIT_SEPARATOR))
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none");
    if options.debug_log {
        command.args(["--features", "debug"]);
    }
    if options.other_outer_ttl {
        command.args(["--features", "other-outer-ttl"]);
    }
    if options.next_abi {
        command.args(["--features", "next-abi"]);
    }
}

/// The command that installs bpf-linker.
pub fn linker_install() -> Command {
    // LLVM, a shared library, does the work: a program without optimisation links as fast.
    quick_install("bpf-linker", BPF_LINKER)
}

/// A copy of `object` without DWARF, or `object` itself if no tool can strip it.
fn strip(toolchain: &Toolchain, object: &Path) -> Result<PathBuf> {
    let Some(mut objcopy) = objcopy(toolchain) else {
        eprintln!(
            "note: neither rust-objcopy nor llvm-objcopy is installed: the object keeps its DWARF"
        );
        return Ok(object.to_owned());
    };
    let stripped = object.with_extension("stripped");
    objcopy.arg("--strip-debug").arg(object).arg(&stripped);
    if output(&mut objcopy).is_none() {
        anyhow::bail!("`{}` failed", shown(&objcopy));
    }
    Ok(stripped)
}

fn objcopy(toolchain: &Toolchain) -> Option<Command> {
    let of_rust = toolchain.llvm_sysroot().and_then(|sysroot| {
        let host = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        let path = host
            .flatten()
            .map(|entry| entry.path().join("bin/rust-objcopy"))
            .find(|path| path.is_file())?;
        let mut command = Command::new(path);
        command.env("LD_LIBRARY_PATH", sysroot.join("lib"));
        Some(command)
    });
    of_rust.or_else(|| is_installed("llvm-objcopy").then(|| Command::new("llvm-objcopy")))
}

/// Copies a file only if its content differs: cargo would rebuild everything that embeds it.
fn replace_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let partial = to.with_extension("o.new");
    fs::write(&partial, new).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("writing {}", to.display()))
}
