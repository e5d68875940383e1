//! The programs and images of a cluster. `cargo xtask cluster` and `cargo xtask test` prepare them.

use anyhow::{Context, Result, bail};
use ipip_testkit::shell;
use std::{
    env,
    path::{Path, PathBuf},
};

/// The path of one program: below `IPIP_TOOLS` if it is set, otherwise below `~/.cache/ipip/tools`.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing; remedy: build it with `cargo xtask tools {name}`, or set IPIP_TOOLS",
            path.display()
        );
    }
    Ok(path)
}

/// The folder with the disk, the kernel and the initramfs of a virtual machine: Debian 12 with a kernel of this
/// series.
pub fn debian(kernel: &str) -> Result<PathBuf> {
    let folder = cache()?.join("hosts").join(kernel);
    if !folder.is_dir() {
        bail!(
            "{} is missing; remedy: `cargo xtask test hosts-all` makes it, or set IPIP_TOOLS",
            folder.display()
        );
    }
    Ok(folder)
}

/// The folders of programs and images.
#[derive(Clone, Debug)]
pub struct Tools {
    programs: PathBuf,
    images: PathBuf,
}

impl Tools {
    /// Finds programs in `IPIP_TOOLS` (otherwise in `~/.cache/ipip/tools`), and images in `IPIP_IMAGES` (otherwise
    /// in `target/image`).
    pub fn find() -> Result<Self> {
        // The last program that is built for Kubernetes, and the last of all.
        Self::find_some(&["agnhost", "metrics-server"])
    }

    /// Finds programs and images as [`Tools::find`] does, but checks only for these programs.
    pub fn find_some(needed: &[&str]) -> Result<Self> {
        let programs = programs()?;
        if let Some(missing) = needed.iter().find(|name| !programs.join(name).exists()) {
            bail!(
                "{} does not contain {missing}; remedy: run `cargo xtask tools` (some 15 minutes, \
                 once), or set IPIP_TOOLS",
                programs.display()
            );
        }
        let images = match env::var_os("IPIP_IMAGES") {
            Some(folder) => PathBuf::from(folder),
            // Programs are in target/PROFILE.
            None => shell::bin_dir()?.join("../image"),
        };
        Ok(Self { programs, images })
    }

    /// The path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The tar of an image.
    pub fn image(&self, name: &str) -> Result<PathBuf> {
        let path = self.images.join(format!("{name}.tar"));
        let path = std::path::absolute(&path)?;
        if !path.is_file() {
            bail!(
                "{} is missing; remedy: run `cargo xtask image --lab`, or set IPIP_IMAGES",
                path.display()
            );
        }
        Ok(path)
    }

    /// PATH on the machines: the tools, then Debian's programs.
    pub fn search_path(&self) -> String {
        format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.programs.display()
        )
    }

    /// The folder with all programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }
}

fn programs() -> Result<PathBuf> {
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Ok(cache()?.join(arch).join("bin"))
}

fn cache() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("IPIP_TOOLS") {
        return Ok(folder.into());
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir()
            .context("there is no home folder; remedy: set IPIP_TOOLS")?
            .join(".cache"),
    };
    Ok(cache.join("ipip/tools"))
}
