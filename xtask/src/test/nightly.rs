//! `.ci/nightly.txt`: which commit last passed each area that is too long for every change.

use super::areas::{Area, Tier};
use crate::command::{output, workspace};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf, process::Command};

const FILE: &str = ".ci/nightly.txt";

const HEAD: &str = "# The commit that last passed each nightly area. Written by `cargo xtask test \
                    --nightly`; commit the change.\n# AREA COMMIT DATE\n";

/// Records the nightly areas among those that passed. The files must be those of a commit.
pub fn record(passed: &[&Area]) -> Result<()> {
    let nightly: Vec<&str> = passed
        .iter()
        .filter(|area| area.tier == Tier::Nightly)
        .map(|area| area.name)
        .collect();
    if nightly.is_empty() {
        return Ok(());
    }
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ":!.ci/nightly.txt",
    ])?;
    if !changed.is_empty() {
        println!("not recorded in {FILE}: files differ from the commit\n{changed}");
        return Ok(());
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let date = output(Command::new("date").args(["--utc", "+%Y-%m-%d"])).context("running date")?;
    let path = path();
    let old = fs::read_to_string(&path).unwrap_or_default();
    let new = updated(&old, &nightly, &format!("{commit} {date}"));
    fs::write(&path, new).with_context(|| format!("writing {}", path.display()))?;
    println!(
        "recorded in {FILE}, to be committed: {}",
        nightly.join(", ")
    );
    Ok(())
}

fn path() -> PathBuf {
    workspace().join(FILE)
}

/// The file's text with `outcome` for each of `areas`; other rows stay.
fn updated(old: &str, areas: &[&str], outcome: &str) -> String {
    let rows = old.lines().filter(|line| !line.starts_with('#'));
    let mut rows: BTreeMap<&str, &str> = rows.filter_map(|line| line.split_once(' ')).collect();
    rows.extend(areas.iter().map(|area| (*area, outcome)));
    let mut text = HEAD.to_owned();
    for (area, outcome) in rows {
        let _ = writeln!(text, "{area} {outcome}");
    }
    text
}

fn git(args: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(workspace()).args(args);
    output(&mut command).with_context(|| format!("git {} failed", args.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_replaced_and_the_others_stay() {
        let old = updated("", &["leak", "bench"], "aaaa 2026-11-01");
        let new = updated(&old, &["leak"], "bbbb 2026-11-02");
        assert_eq!(
            new.strip_prefix(HEAD),
            Some("bench aaaa 2026-11-01\nleak bbbb 2026-11-02\n")
        );
    }
}
