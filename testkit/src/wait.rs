//! Waiting for a condition.

use anyhow::{Result, bail};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long [`until`] waits: long enough for a machine under load, and shorter than the 30 seconds after
/// which an agent resyncs by itself, so that a change that only a resync would find is rarely taken for one
/// that the agent observed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `happened` until it is true, for 20 seconds at most. `what` names the condition in the error.
pub fn until(what: &str, happened: impl FnMut() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, happened)
}

/// Polls `happened` until it is true, for `patience` at most. `what` names the condition in the error.
pub fn within(
    patience: Duration,
    what: &str,
    mut happened: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !happened()? {
        if Instant::now() > deadline {
            bail!("not within {patience:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
