//! Programs from the cache of tools.

use anyhow::{Context, Result, bail};
use std::{env, path::PathBuf};

/// The path of the program `name`.
pub fn program(name: &str) -> Result<PathBuf> {
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let path = root()?.join(arch).join("bin").join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: build it with `cargo xtask tools {name}`, or set IPIP_TOOLS",
            path.display()
        );
    }
    Ok(path)
}

fn root() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("IPIP_TOOLS") {
        return Ok(folder.into());
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir().context("no home folder")?.join(".cache"),
    };
    Ok(cache.join("ipip/tools"))
}
