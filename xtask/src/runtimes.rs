//! The container runtimes of the area `runtimes`.

use crate::{
    command::run,
    image, setup,
    tools::{self, native_arch},
};
use anyhow::{Context, Result, bail};
use std::{fs, path::Path, process::Command};

/// Tools of `cargo xtask tools` that the tests run.
const TOOLS: [&str; 3] = ["containerd", "cni-plugins", "cnitool"];

/// Installs or builds all container runtimes and their tools.
pub fn prepare() -> Result<()> {
    let mut packages = tools::missing_packages();
    packages.extend(
        ["podman"]
            .iter()
            .filter(|it| !crate::command::is_installed(it)),
    );
    setup::packages(&packages)?;
    tools::prepare(&TOOLS)?;
    image::pause()?;
    debian_containerd()
}

/// The distribution's own containerd (1.6 on Debian 12), unpacked into the cache and not installed:
/// an installed one would run as a service and conflict with the user's own.
fn debian_containerd() -> Result<()> {
    let folder = tools::root()?.join(native_arch()).join("containerd-debian");
    if folder.is_dir() {
        return Ok(());
    }
    let work = folder.with_extension("building");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    run(Command::new("apt-get")
        .args(["download", "containerd"])
        .current_dir(&work))?;
    let Some(package) = first_package(&work)? else {
        bail!("apt-get downloaded nothing into {}", work.display());
    };
    let unpacked = work.join("unpacked");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
    fs::rename(unpacked.join("usr/bin"), &folder)
        .with_context(|| format!("making {}", folder.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))
}

fn first_package(folder: &Path) -> Result<Option<std::path::PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
