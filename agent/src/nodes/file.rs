//! The inventory file. It may be written in place, renamed over, or lie behind symbolic links that are
//! swapped, as the kubelet does for ConfigMaps.

use super::{NodeSource, Refusal, Update};
use crate::{
    nodes::inventory::{self, Field, Inventory},
    stamp::Stamp,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep},
};

/// Poll interval. With [`QUIET_PERIOD`], a change is detected in less than a second.
const POLL: Duration = Duration::from_millis(500);
/// A changed file is read when its stamp has been unchanged for this long, because a writer may truncate the file
/// before it writes.
const QUIET_PERIOD: Duration = Duration::from_millis(50);
/// Upper bound on the wait for a quiet period.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Number of reads after a change, one poll apart: a write within the clock tick of the first read may not change
/// the stamp.
const READS: u32 = 2;

/// An inventory file, read for the node `own_name`.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    own_name: String,
}

impl FileSource {
    /// The source that reads `path`, which may be absent at first.
    pub fn new(path: impl Into<PathBuf>, own_name: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            own_name: own_name.into(),
        }
    }

    /// The current content of the file.
    pub fn read(&self) -> Update {
        self.parse(&fs::read_to_string(&self.path), None)
    }

    /// The content of the file after `last`.
    fn parse(&self, text: &io::Result<String>, last: Option<&Inventory>) -> Update {
        let path = self.path.display();
        match text {
            Ok(text) => inventory::parse(text, &self.own_name, last)
                .map(|it| Inventory {
                    endpoint_is_stated: self.states_endpoint(&it),
                    ..it
                })
                .map_err(|error| Refusal::because(format!("{path}: {error}"))),
            Err(error) => Err(Refusal::because(format!(
                "inventory: cannot read {path}: {error}; remedy: write it, or set `inventory` to the right path"
            ))),
        }
    }

    /// Whether the inventory states the public endpoint of the own node, be it valid or not.
    fn states_endpoint(&self, inventory: &Inventory) -> bool {
        let own = inventory.node(&self.own_name);
        let mut left_out = inventory.fields_left_out(&self.own_name);
        own.is_some_and(|it| it.public_endpoint.is_some())
            || left_out.any(|it| it == Field::PublicEndpoint)
    }
}

impl NodeSource for FileSource {
    async fn watch(self, updates: Sender<Update>) {
        let mut stamp = Stamp::of(&self.path);
        let mut reads_due = READS;
        let mut published = None;
        let mut last: Option<Inventory> = None;
        loop {
            if reads_due > 0 {
                reads_due -= 1;
                let text = fs::read_to_string(&self.path);
                let content = text.as_ref().map_err(io::Error::kind).cloned();
                if published.as_ref() != Some(&content) {
                    let update = self.parse(&text, last.as_ref());
                    if let Ok(inventory) = &update {
                        last = Some(inventory.clone());
                    }
                    if updates.send(update).await.is_err() {
                        return;
                    }
                    published = Some(content);
                }
            }
            tokio::select! {
                () = updates.closed() => return,
                () = sleep(POLL) => {}
            }
            let now = Stamp::of(&self.path);
            if now != stamp {
                stamp = settled(&self.path, now).await;
                reads_due = READS;
            }
        }
    }
}

/// Waits until the stamp of `path`, which is `stamp` now, has not changed for a [`QUIET_PERIOD`], but not
/// longer than [`MAX_WAIT`]. Returns the last stamp.
async fn settled(path: &Path, mut stamp: Option<Stamp>) -> Option<Stamp> {
    let deadline = Instant::now() + MAX_WAIT;
    while Instant::now() < deadline {
        sleep(QUIET_PERIOD).await;
        let before = std::mem::replace(&mut stamp, Stamp::of(path));
        if stamp == before {
            break;
        }
    }
    stamp
}

#[cfg(test)]
mod tests;
