//! `cargo xtask bench`.

use crate::{
    build,
    command::{as_root, run, target_dir},
    setup::{self, Need},
};
use anyhow::Result;

/// Builds everything optimised, then measures; `sync` as the first argument chooses the benchmark of
/// an agent that follows many nodes.
pub fn bench(args: &[&str]) -> Result<()> {
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    build::build(true)?;
    let (name, args) = match args.split_first() {
        Some((&"sync", args)) => ("bench-sync", args),
        _ => ("bench", args),
    };
    let program = target_dir()?.join("release").join(name);
    run(&mut as_root(&program.to_string_lossy(), args))
}
