//! `cargo xtask demo`: shows the product on this machine.

use crate::{
    build, cluster,
    command::{as_root, run, target_dir},
    setup::{self, Need},
};
use anyhow::Result;

/// Shows three simulated clouds; with `keep` they stay. Builds only the programs that run in them, without
/// optimisation, so that the first table appears soon.
pub fn clouds(keep: bool) -> Result<()> {
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    build::for_demo()?;
    let program = target_dir()?.join("debug/demo");
    let args = if keep { &["--keep"][..] } else { &[] };
    run(&mut as_root(&program.to_string_lossy(), args))
}

/// Compares two real clusters, one without the product and one with it.
pub fn kubernetes() -> Result<()> {
    cluster::demo()
}
