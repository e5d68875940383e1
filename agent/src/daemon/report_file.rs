//! The report of this agent for `ipipctl status`: a JSON file in the state folder.

use crate::{
    files::{self, absent_is_fine},
    problems::Problems,
    repairs,
};
use ipip_datapath::REPORT_FILE;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The file, and what was written to it last.
#[derive(Debug)]
pub struct ReportFile {
    path: PathBuf,
    written: String,
}

/// The content. Times are Unix times in seconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    agent_version: &'static str,
    ready: bool,
    problems: Vec<Held<'a>>,
    repairs: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Held<'a> {
    reason: &'static str,
    text: &'a str,
    since: u64,
    blocks: bool,
}

impl ReportFile {
    /// The file in `state_dir`. It is written by [`Self::write`].
    pub fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(REPORT_FILE),
            written: String::new(),
        }
    }

    /// Writes the report if it has changed.
    ///
    /// # Errors
    /// The file cannot be written. The next call tries again.
    pub fn write(&mut self, problems: &Problems, ready: bool) -> io::Result<()> {
        let content = Content {
            agent_version: env!("CARGO_PKG_VERSION"),
            ready,
            problems: problems
                .iter()
                .map(|(problem, since)| Held {
                    reason: problem.reason.name(),
                    text: &problem.text,
                    since,
                    blocks: problem.reason.blocks(),
                })
                .collect(),
            repairs: repairs::counts(),
        };
        let text = serde_json::to_string_pretty(&content)? + "\n";
        if text == self.written {
            return Ok(());
        }
        files::replace_unsynced(&self.path, &text)?;
        self.written = text;
        Ok(())
    }
}

/// Removes the report from a state folder. An absent report is no error.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(state_dir.join(REPORT_FILE)))
}
