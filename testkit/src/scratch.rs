//! Names and folders that one test has to itself.

use crate::shell;
use anyhow::Result;
use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

/// Mount point of the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A name that nothing else on this machine has: process id and a number. `cargo xtask clean` knows the
/// leftovers of a crashed test by its form.
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
