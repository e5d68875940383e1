//! The report that the agent leaves in its state folder.

use crate::state_file;
use anyhow::Result;
use ipip_datapath::{LOCK_FILE, REPORT_FILE};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, fs::File, path::Path};

/// What the agent reported last.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// Whether an agent runs now.
    #[serde(default)]
    running: bool,
    agent_version: String,
    ready: bool,
    /// What an operator should correct.
    pub problems: Vec<Problem>,
    /// How often the agent set something again that another program had changed, since it started.
    repairs: BTreeMap<String, u64>,
}

/// Something that an operator should correct.
#[derive(Debug, Deserialize, Serialize)]
pub struct Problem {
    reason: String,
    text: String,
    /// Unix time in seconds.
    since: u64,
    /// Whether the node is not ready because of it.
    blocks: bool,
}

impl AgentReport {
    /// Reads the report in `state_dir`; `None` if there is none.
    pub fn read(state_dir: &Path) -> Result<Option<Self>> {
        let report = state_file::read::<Self>(state_dir, REPORT_FILE, "a report")?;
        Ok(report.map(|it| Self {
            running: runs(state_dir),
            ..it
        }))
    }

    /// One line: whether the agent runs and is ready, and the numbers of problems and repairs.
    pub fn summary(&self) -> String {
        let runs = if self.running {
            "runs"
        } else {
            "does not run; it last was"
        };
        let ready = if self.ready { "ready" } else { "not ready" };
        let problems = match self.problems.len() {
            0 => "no problems".into(),
            1 => "1 problem".into(),
            many => format!("{many} problems"),
        };
        let repairs: Vec<String> = self
            .repairs
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        let separator = if self.running { "," } else { "" };
        let mut line = format!("{runs}{separator} {ready}, {problems}");
        if !repairs.is_empty() {
            line += &format!(", repaired: {}", repairs.join(", "));
        }
        line
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.text)
    }
}

/// Whether an agent holds the lock of the state folder.
fn runs(state_dir: &Path) -> bool {
    let Ok(file) = File::open(state_dir.join(LOCK_FILE)) else {
        return false;
    };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use std::fs;

    #[test]
    fn the_summary_says_whether_the_agent_runs() {
        let mut report = testdata::agent_report();
        assert_eq!(
            report.summary(),
            "runs, not ready, 1 problem, repaired: 2 Sysctl"
        );
        report.running = false;
        report.ready = true;
        report.problems.clear();
        report.repairs.clear();
        assert_eq!(
            report.summary(),
            "does not run; it last was ready, no problems"
        );
    }

    #[test]
    fn an_agent_runs_while_it_holds_the_lock_of_the_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AgentReport::read(folder.path()).unwrap().is_none());
        let report = serde_json::to_string(&testdata::agent_report()).unwrap();
        fs::write(folder.path().join(REPORT_FILE), report).unwrap();
        let running = || AgentReport::read(folder.path()).unwrap().unwrap().running;
        assert!(!running());
        let lock = File::create(folder.path().join(LOCK_FILE)).unwrap();
        let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
        assert!(running());
        drop(held);
        assert!(!running());
    }
}
