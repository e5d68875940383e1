//! Builds the programs of a cluster and those of the product's image while the first areas run. On a new machine it takes both
//! processors for more than ten minutes, and most tests wait for something.

use super::areas::Area;
use crate::{command::target_dir, image};
use anyhow::{Context, Result};
use std::{
    fs::File,
    process::{self, Child, Command, Stdio},
};

/// The areas that need them.
const WITH_CLUSTER: [&str; 5] = ["kubernetes", "hosts", "hosts-all", "bare", "migration"];

/// A build in the background. To drop it is to wait for its end.
pub struct Ahead(Child);

impl Ahead {
    /// Starts the build if one of the areas needs it. If it fails, the area builds what is missing, and says why that fails.
    pub fn start(areas: &[&Area]) -> Option<Self> {
        let is_needed = areas.iter().any(|it| WITH_CLUSTER.contains(&it.name));
        let started = is_needed.then(spawn)?;
        started
            .inspect_err(|error| eprintln!("images are built when they are needed: {error:#}"))
            .ok()
    }
}

/// At the lowest priority, so that the tests' times stay what they are.
fn spawn() -> Result<Ahead> {
    // Two processes cannot install packages at the same time.
    image::prepare()?;
    let log = target_dir()?.join("images.log");
    let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    // Not its path: the build of the workspace may have replaced the file.
    let own = format!("/proc/{}/exe", process::id());
    println!(
        "images: their programs are built while the first areas run; see {}",
        log.display()
    );
    let mut command = Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(own)
        .arg("image-programs")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    Ok(Ahead(command.spawn().context("running nice")?))
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_area_with_a_cluster_exists() {
        let areas = WITH_CLUSTER.map(|name| (name, Area::find(name)));
        assert!(areas.iter().all(|(_, area)| area.is_some()), "{areas:?}");
    }
}
