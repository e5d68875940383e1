//! Names, pins and folders for one test.

use crate::shell;
use anyhow::Result;
use ipip_datapath::{Pins, remove};
use std::{
    fs,
    ops::Deref,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// Mount point of the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A name that is unique on this machine: `ipip-`, the process ID and a number. `cargo xtask clean` recognises the
/// leftovers of a crashed test by the prefix `ipip-`.
pub fn unique_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("ipip-{}x{number}", std::process::id())
}

/// Mounts the BPF file system unless it is mounted.
pub fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if !mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(BPFFS))
    {
        shell::run(&format!("mount -t bpf bpf {BPFFS}"))?;
    }
    Ok(())
}

/// A pin root for one test; also its [`Pins`]. Dropping it removes the datapath that is pinned there.
#[derive(Debug)]
pub struct ScratchPins(Pins);

impl ScratchPins {
    /// A unique pin root. Nothing is pinned yet.
    #[expect(
        clippy::new_without_default,
        reason = "each value is different, which a default should not be"
    )]
    pub fn new() -> Self {
        Self(Pins::new(Path::new(BPFFS).join(unique_prefix())))
    }
}

impl Deref for ScratchPins {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.0
    }
}

impl Drop for ScratchPins {
    fn drop(&mut self) {
        let removed = remove(&self.0);
        // A test that panics already reports a failure; a second panic would abort the process.
        if !thread::panicking() {
            removed.unwrap_or_else(|error| panic!("cannot remove the test's pins: {error}"));
        }
    }
}
