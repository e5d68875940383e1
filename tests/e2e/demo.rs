//! The demo that the README shows first. It checks what it shows, so its rows are tests.

use anyhow::Result;
use ipip_testkit::{harness::LoneTest, lone_tests, shell};
use std::process::Command;

pub const TESTS: &[LoneTest] = lone_tests![each_row_of_the_demo_succeeds];

/// The demo exits with 1 if a row fails; the error shows all rows.
fn each_row_of_the_demo_succeeds() -> Result<()> {
    let demo = shell::own_program("demo")?;
    shell::printed("demo", Command::new(demo).output())?;
    Ok(())
}
