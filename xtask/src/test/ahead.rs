//! Builds the programs of a cluster while the first areas run. On a machine without them it takes both processors for ten minutes,
//! and most tests wait for something.

use super::areas::Area;
use crate::{command::target_dir, setup, tools};
use anyhow::{Context, Result};
use std::{
    env,
    fs::File,
    process::{Child, Command, Stdio},
};

/// The areas that need all programs.
const WITH_CLUSTER: [&str; 4] = ["kubernetes", "hosts", "hosts-all", "migration"];

/// A build in the background. To drop it is to wait for its end.
pub struct Ahead(Child);

impl Ahead {
    /// Starts the build if one of the areas needs it and the cache lacks a program. If it fails, the area builds what is missing, and
    /// says why that fails.
    pub fn start(areas: &[&Area]) -> Option<Self> {
        let is_needed = areas.iter().any(|it| WITH_CLUSTER.contains(&it.name));
        if !is_needed || !tools::are_missing() {
            return None;
        }
        spawn()
            .inspect_err(|error| eprintln!("tools are built when they are needed: {error:#}"))
            .ok()
    }
}

/// At the lowest priority, so that the tests' times stay what they are.
fn spawn() -> Result<Ahead> {
    setup::packages(&tools::missing_packages())?;
    let log = target_dir()?.join("tools.log");
    let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let own = env::current_exe().context("finding this program")?;
    println!(
        "tools: built while the first areas run; see {}",
        log.display()
    );
    let mut command = Command::new("nice");
    command
        .args(["-n", "19"])
        .arg(own)
        .arg("tools")
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
