//! Man pages: each program writes its own, from the definition of its command line.

use crate::{
    build,
    command::{cargo, run, target_dir},
    ebpf,
};
use anyhow::Result;

/// `cargo xtask man`: the pages of both programs in target/man.
pub fn man() -> Result<()> {
    // The programs embed the eBPF object.
    build::object(ebpf::Options::default())?;
    let folder = target_dir()?.join("man");
    for program in ["ipip-agent", "ipipctl"] {
        let mut command = cargo();
        command.args(["run", "--package", program, "--bin", program, "--"]);
        run(command.arg("man").arg(&folder))?;
    }
    println!("man pages: {}", folder.display());
    Ok(())
}
