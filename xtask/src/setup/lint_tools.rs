//! The programs that check the sources. They are installed below `target`, except rustup's components and
//! cargo-deny, which are installed where cargo keeps its programs.

use super::{BPF_CLIPPY, Setup};
use crate::{
    command::{cargo, is_installed, output, quick_install, target_dir},
    toolchain::Toolchain,
};
use anyhow::Result;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const CARGO_DENY: &str = "0.20.2";

/// A program in a wheel of PyPI. It installs in seconds, while `cargo install` compiles for minutes.
struct Wheel {
    name: &'static str,
    version: &'static str,
}

const WHEELS: [Wheel; 2] = [TYPOS, TAPLO];

const TYPOS: Wheel = Wheel {
    name: "typos",
    version: "1.52.0",
};

const TAPLO: Wheel = Wheel {
    name: "taplo",
    version: "0.9.3",
};

/// The program that finds misspelled words.
pub fn typos() -> Result<PathBuf> {
    TYPOS.program()
}

/// The program that formats TOML.
pub fn taplo() -> Result<PathBuf> {
    TAPLO.program()
}

impl Wheel {
    fn folder(&self) -> Result<PathBuf> {
        let name = format!("{}-{}", self.name, self.version);
        Ok(target_dir()?.join("tools").join(name))
    }

    fn program(&self) -> Result<PathBuf> {
        Ok(self.folder()?.join("bin").join(self.name))
    }
}

impl Setup {
    pub(super) fn lint(&self) -> Result<()> {
        self.components()?;
        let has_clippy = Path::new("/usr/bin/cargo-clippy").is_file();
        if Toolchain::find() == Some(Toolchain::Debian) && !has_clippy {
            self.packages(&[BPF_CLIPPY])?;
        }
        if !is_installed("cargo-deny") {
            let why = "cargo-deny is absent (about a minute)";
            self.step(why, &mut quick_install("cargo-deny", CARGO_DENY))?;
        }
        WHEELS.iter().try_for_each(|wheel| self.wheel(wheel))
    }

    /// Installs rustfmt and clippy of the toolchain that builds the host side.
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

    /// Installs a wheel into a folder of its own, so that no Python environment changes.
    fn wheel(&self, wheel: &Wheel) -> Result<()> {
        if wheel.program()?.is_file() {
            return Ok(());
        }
        if output(Command::new("python3").args(["-m", "pip", "--version"])).is_none() {
            self.packages(&["python3-pip"])?;
        }
        let mut command = Command::new("python3");
        command
            .args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--root-user-action=ignore"])
            .arg("--target")
            .arg(wheel.folder()?)
            .arg(format!("{}=={}", wheel.name, wheel.version));
        self.step(&format!("{} is absent", wheel.name), &mut command)
    }
}
