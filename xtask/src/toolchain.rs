//! Finding a Rust toolchain that has `core` for the BPF target.

use crate::command::output;
use anyhow::{Result, bail};
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of the programs: BPF, little endian.
pub const TARGET: &str = "bpfel-unknown-none";

/// The major version of LLVM whose bitcode our bpf-linker reads; a newer rustc writes newer bitcode.
const LLVM: &str = "22";

/// The nightly that `cargo xtask setup` installs: LLVM 22 is in nightlies until spring 2026.
pub const NIGHTLY: &str = "nightly-2026-05-20";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A toolchain that can build for BPF.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Toolchain {
    /// Debian's rustc-web; `core` comes compiled in libstd-rust-web-dev-bpf.
    Debian,
    /// A rustup toolchain with rust-src, from which cargo builds `core`.
    Rustup(String),
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian => write!(
                f,
                "Debian's {DEBIAN_RUSTC} with the core of libstd-rust-web-dev-bpf"
            ),
            Self::Rustup(name) => write!(f, "rustup's {name} with a core built from rust-src"),
        }
    }
}

impl Toolchain {
    /// The first usable toolchain of this machine.
    pub fn find() -> Option<Self> {
        debian().or_else(|| nightlies().into_iter().find_map(usable_nightly))
    }

    /// A usable toolchain, or an error with the remedy.
    pub fn require() -> Result<Self> {
        if let Some(toolchain) = Self::find() {
            return Ok(toolchain);
        }
        bail!(
            "no Rust toolchain here has `core` for {TARGET} and LLVM {LLVM}: neither {DEBIAN_RUSTC} with \
             libstd-rust-web-dev-bpf nor a rustup nightly with rust-src\n\
             remedy: cargo xtask setup\n\
             or by hand: apt-get install rustc-web libstd-rust-web-dev-bpf   (Debian 12)\n\
             or by hand: rustup toolchain install {NIGHTLY} --profile minimal \
             --component rust-src,clippy"
        )
    }

    /// `cargo <subcommand>` with the arguments and variables by which this toolchain builds for BPF.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = crate::command::cargo();
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    // A stable rustc; aya-ebpf asks for `asm_experimental_arch`.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .arg(subcommand);
                command
            }
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command
                    .current_dir(crate::command::workspace())
                    .args(["run", name, "cargo", subcommand, "-Zbuild-std=core"])
                    // They name the toolchain of the cargo that runs xtask.
                    .env_remove("CARGO")
                    .env_remove("RUSTC")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        };
        command.args(["--target", TARGET]);
        // bpf-linker loads LLVM from the library path, not from where it was built.
        if let Some(sysroot) = self.llvm_sysroot() {
            let inherited = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let paths = [sysroot.join("lib")]
                .into_iter()
                .chain(env::split_paths(&inherited));
            if let Ok(joined) = env::join_paths(paths) {
                command.env("LD_LIBRARY_PATH", joined);
            }
        }
        command
    }

    /// The clippy of this toolchain as a cargo subcommand. The error says why there is none.
    pub fn clippy(&self) -> Result<Command, String> {
        match self {
            Self::Debian => {
                if !Path::new("/usr/bin/cargo-clippy").is_file() {
                    return Err("package rust-web-clippy is not installed".into());
                }
                let mut debian = Command::new("/usr/bin/cargo-clippy");
                let cargo = self.cargo("clippy");
                debian
                    .current_dir(crate::command::workspace())
                    .args(cargo.get_args());
                for (key, value) in cargo.get_envs() {
                    match value {
                        Some(value) => debian.env(key, value),
                        None => debian.env_remove(key),
                    };
                }
                Ok(debian)
            }
            Self::Rustup(name) => {
                let has_it =
                    output(Command::new("rustup").args(["run", name, "cargo-clippy", "-V"]));
                match has_it {
                    Some(_) => Ok(self.cargo("clippy")),
                    None => Err(format!("rustup's {name} has no component clippy")),
                }
            }
        }
    }

    /// The folder with LLVM's library and rust-objcopy. Debian's rustc has neither in its own folder,
    /// so those of the active rustup toolchain are used.
    pub fn llvm_sysroot(&self) -> Option<PathBuf> {
        match self {
            Self::Debian => sysroot(&mut Command::new("rustc")),
            Self::Rustup(name) => sysroot(Command::new("rustup").args(["run", name, "rustc"])),
        }
    }
}

fn debian() -> Option<Toolchain> {
    let version = output(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
    let print_folder = ["--print", "target-libdir", "--target", TARGET];
    let folder = output(Command::new(DEBIAN_RUSTC).args(print_folder))?;
    (llvm_major(&version) == Some(LLVM) && has_core(Path::new(&folder)))
        .then_some(Toolchain::Debian)
}

fn has_core(libraries: &Path) -> bool {
    fs::read_dir(libraries).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn nightlies() -> Vec<String> {
    let list = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect()
}

fn usable_nightly(name: String) -> Option<Toolchain> {
    let rustc = || {
        let mut command = Command::new("rustup");
        command.args(["run", &name, "rustc"]);
        command
    };
    let version = output(rustc().arg("-vV"))?;
    let source = sysroot(&mut rustc())?.join("lib/rustlib/src/rust/library/core");
    (llvm_major(&version) == Some(LLVM) && source.is_dir()).then_some(Toolchain::Rustup(name))
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    output(rustc.args(["--print", "sysroot"])).map(PathBuf::from)
}

/// The major version of LLVM in the output of `rustc -vV`.
fn llvm_major(version: &str) -> Option<&str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_rustc_is_read_from_its_version() {
        let version = "rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4";
        assert_eq!(llvm_major(version), Some("22"));
        assert_eq!(llvm_major("rustc 1.97.0"), None);
    }
}
