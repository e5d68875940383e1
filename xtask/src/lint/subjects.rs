//! The subjects of new commits: `area: imperative`.

use super::Outcome;
use crate::command::{output, workspace};
use std::process::Command;

/// Names of the main branch in a clone and in a worktree.
const BASES: [&str; 2] = ["origin/main", "main"];

/// Checks the commits that the main branch does not have.
pub fn check() -> Outcome {
    let has = |base: &&&str| git(&["rev-parse", "--verify", "--quiet", base]).is_some();
    let Some(base) = BASES.iter().find(has) else {
        return Outcome::Skipped(format!(
            "this repository has no branch {}",
            BASES.join(" or ")
        ));
    };
    let range = format!("{base}..HEAD");
    let Some(subjects) = git(&["log", "--no-merges", "--format=%s", &range]) else {
        return Outcome::Failed(format!("git log {range} failed"));
    };
    let wrong: Vec<&str> = subjects.lines().filter(|line| !is_right(line)).collect();
    if wrong.is_empty() {
        return Outcome::Passed;
    }
    Outcome::Failed(format!(
        "not of the form `area: imperative`, as in `agent: say how to load the fou module`: {}",
        wrong.join("; ")
    ))
}

/// Whether a subject names an area, continues in lower case and has no full stop at its end.
fn is_right(subject: &str) -> bool {
    let Some((area, what)) = subject.split_once(": ") else {
        return false;
    };
    let is_area = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_/, ".contains(c);
    !area.is_empty()
        && area.chars().all(is_area)
        && what.starts_with(|c: char| c.is_ascii_lowercase())
        && !what.ends_with('.')
}

fn git(args: &[&str]) -> Option<String> {
    output(Command::new("git").current_dir(workspace()).args(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_an_area_and_says_what_to_do() {
        for right in [
            "agent: say how to load the fou module",
            "abi, ebpf: name the header lengths",
            "ci: bump actions/checkout from 4 to 5",
        ] {
            assert!(is_right(right), "{right}");
        }
        for wrong in [
            "Nothing loads the module fou, so the agent says who must",
            "agent: Say how to load the fou module",
            "agent: say how to load the fou module.",
            ": nothing",
        ] {
            assert!(!is_right(wrong), "{wrong}");
        }
    }
}
