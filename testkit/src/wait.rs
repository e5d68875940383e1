//! Waiting for what happens soon, but not at once.

use anyhow::{Result, bail};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Asks `happened` again and again until it is true, for ten seconds at most. `what` names it in the
/// error.
pub fn until(what: &str, happened: impl FnMut() -> Result<bool>) -> Result<()> {
    within(Duration::from_secs(10), what, happened)
}

/// As [`until`], with more patience.
pub fn within(
    patience: Duration,
    what: &str,
    mut happened: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !happened()? {
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
