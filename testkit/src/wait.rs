//! Waiting for a condition.

use anyhow::{Result, bail};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long [`until`] waits: long enough for a machine under load, and shorter than an agent's resync interval of
/// 30 seconds. A change that the agent misses and only a resync finds therefore usually fails the test.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Polls `happened` until it is true, for 20 seconds at most. `what` names the condition in the error.
pub fn until(what: &str, happened: impl FnMut() -> Result<bool>) -> Result<()> {
    within(MAX_WAIT, what, happened)
}

/// Polls `happened` until it is true, for `max_wait` at most. `what` names the condition in the error.
pub fn within(
    max_wait: Duration,
    what: &str,
    mut happened: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + max_wait;
    while !happened()? {
        if Instant::now() > deadline {
            bail!("not within {max_wait:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
