//! The executable: it runs on any distribution, and starts quickly.

use anyhow::{Context, Result, ensure};
use ipip_testkit::{cni_node::CniNode, shell};
use std::{
    fs,
    io::{self, Write},
    process::Command,
    time::{Duration, Instant},
};

#[test]
fn the_plugin_is_static() -> Result<()> {
    const DYNAMIC: u32 = 2;
    const INTERPRETER: u32 = 3;
    let elf = fs::read(shell::own_program("ipip")?)?;
    let at = |offset: usize, len: usize| -> Result<u64> {
        let bytes = elf.get(offset..offset + len).context("cut off")?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)))
    };
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "not a 64-bit little-endian ELF file"
    );
    let (first, size, count) = (at(32, 8)?, at(54, 2)?, at(56, 2)?);
    for number in 0..count {
        let kind = at((first + number * size) as usize, 4)? as u32;
        ensure!(
            kind != DYNAMIC && kind != INTERPRETER,
            "it needs shared libraries; remedy: build it with `cargo xtask build`"
        );
    }
    Ok(())
}

#[test]
fn the_plugin_has_no_async_runtime() -> Result<()> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args([
        "tree",
        "--offline",
        "--package",
        "ipip-cni",
        "--edges",
        "normal",
        "--prefix",
        "none",
    ])
    .current_dir(env!("CARGO_MANIFEST_DIR"));
    let crates = shell::printed("cargo tree", tree.output())?;
    ensure!(crates.contains("aya"), "not a tree of the plugin: {crates}");
    for runtime in ["tokio ", "async-std ", "smol ", "futures-executor "] {
        ensure!(
            !crates.lines().any(|it| it.starts_with(runtime)),
            "{runtime}"
        );
    }
    Ok(())
}

#[test]
fn the_start_of_the_plugin_is_measured() -> Result<()> {
    let node = CniNode::bare()?;
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..51 {
        let began = Instant::now();
        node.call("VERSION", "", None).run()?.success()?;
        took.push(began.elapsed());
    }
    took.sort();
    // A busy machine would fail an assertion about time; `cargo xtask bench cni` compares.
    writeln!(
        io::stderr(),
        "start, VERSION and end: {:?}",
        took[took.len() / 2]
    )?;
    Ok(())
}
