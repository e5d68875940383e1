//! The lab cleans up after itself.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, Topology};
use ipip_testkit::{harness::LoneTest, lone_tests};
use std::{fs, path::Path};

pub const TESTS: &[LoneTest] = lone_tests![a_dropped_lab_leaves_nothing_behind];

/// Starts a lab with agents and pods, drops it, and searches for namespaces, pins and files with its name.
fn a_dropped_lab_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::start(Topology::one_realm())?;
    let prefix = lab.prefix().to_string();
    let files = lab.folder().to_path_buf();
    let inside = [lab.nodes()[0].netns_path(), lab.pods()[0].netns_path()];
    for path in &inside {
        ensure!(Path::new(path).exists(), "{path} does not exist");
    }
    drop(lab);
    for folder in ["/run/netns", "/sys/fs/bpf"] {
        for entry in fs::read_dir(folder).with_context(|| folder.to_string())? {
            let name = entry?.file_name();
            ensure!(
                !name.to_string_lossy().starts_with(&prefix),
                "{folder}/{} is left",
                name.display()
            );
        }
    }
    ensure!(!files.exists(), "{} is left", files.display());
    Ok(())
}
