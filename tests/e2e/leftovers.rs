//! The lab cleans up after itself.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, Topology};
use ipip_testkit::{harness::LoneTest, lone_tests};
use std::{fs, path::Path};

pub const TESTS: &[LoneTest] = lone_tests![a_dropped_lab_leaves_nothing_behind];

/// Builds a lab, starts agents and pods in it, drops it, and looks for what is left.
fn a_dropped_lab_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::start(Topology::one_realm())?;
    let prefix = lab.prefix().to_string();
    let folder = lab.folder().to_path_buf();
    let inside = [lab.nodes()[0].netns_path(), lab.pods()[0].netns_path()];
    for path in &inside {
        ensure!(Path::new(path).exists(), "{path} is not there");
    }
    drop(lab);
    for place in ["/run/netns", "/sys/fs/bpf"] {
        for entry in fs::read_dir(place).with_context(|| place.to_string())? {
            let name = entry?.file_name();
            ensure!(
                !name.to_string_lossy().starts_with(&prefix),
                "{place}/{} is left",
                name.display()
            );
        }
    }
    ensure!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}
