//! `cargo xtask bench`.

use crate::{
    build,
    command::{as_root, run, target_dir},
    setup::{self, Need},
};
use anyhow::Result;

/// Builds everything optimised, then runs the benchmark with these arguments.
pub fn bench(args: &[&str]) -> Result<()> {
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    build::build(true)?;
    let program = target_dir()?.join("release").join("bench");
    run(&mut as_root(&program.to_string_lossy(), args))
}
