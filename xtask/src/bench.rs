//! `cargo xtask bench`.

use crate::{
    build,
    command::{as_root, run, target_dir},
    setup::{self, Need},
    tools,
};
use anyhow::Result;

/// What `bench sync` runs to have an API server.
const SYNC_PROGRAMS: [&str; 4] = ["etcd", "kube-apiserver", "kubeadm", "kubectl"];

/// Builds the programs of the benchmark, then runs it with these arguments.
pub fn bench(args: &[&str]) -> Result<()> {
    setup::require(&[Need::Compiler, Need::Ebpf, Need::Lab, Need::Bpffs])?;
    if args.first() == Some(&"sync") {
        tools::prepare(&SYNC_PROGRAMS)?;
    }
    build::for_bench()?;
    // sudo may pass on none of our variables.
    let root = format!("{}={}", tools::VARIABLE, tools::root()?.display());
    let program = target_dir()?.join("release").join("bench");
    let program = program.to_string_lossy();
    let words = [&[root.as_str(), &program], args].concat();
    run(&mut as_root("env", &words))
}
