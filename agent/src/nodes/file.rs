//! The inventory file, followed through every way in which files are replaced: written in place,
//! renamed over, or behind symbolic links that are swapped, as the kubelet does for ConfigMaps.

use super::{NodeSource, Refusal, Update};
use crate::nodes::inventory;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc::Sender},
    time::timeout,
};
use tracing::warn;

/// A writer may truncate first and write then: the file is read when it has been quiet so long.
const QUIET: Duration = Duration::from_millis(50);
/// And after so long at the latest.
const LONGEST: Duration = Duration::from_secs(1);
/// It is read this often anyway, for file systems that tell nothing.
const ANYWAY: Duration = Duration::from_secs(30);
/// `ELOOP` of Linux: more links than this are a loop.
const MOST_LINKS: usize = 40;

/// An inventory file, as the node `own_name` reads it.
#[derive(Clone, Debug)]
pub struct FileSource {
    path: PathBuf,
    own_name: String,
}

impl FileSource {
    /// The source that reads `path`; it need not be there yet.
    pub fn new(path: impl Into<PathBuf>, own_name: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            own_name: own_name.into(),
        }
    }

    /// What the file holds now.
    pub fn read(&self) -> Update {
        self.judge(&fs::read_to_string(&self.path))
    }

    fn judge(&self, text: &io::Result<String>) -> Update {
        let path = self.path.display();
        match text {
            Ok(text) => inventory::parse(text, &self.own_name)
                .map_err(|error| Refusal::because(format!("{path}: {error}"))),
            Err(error) => Err(Refusal::because(format!(
                "inventory: cannot read {path}: {error}; remedy: write it, or set `inventory` to the right path"
            ))),
        }
    }
}

impl NodeSource for FileSource {
    async fn watch(self, updates: Sender<Update>) {
        let changed = Arc::new(Notify::new());
        let mut folders = Folders::new(changed.clone());
        let mut before = None;
        loop {
            // First watch, then read: a change in between wakes us again.
            folders.follow(&self.path);
            let text = fs::read_to_string(&self.path);
            let seen = text.as_ref().map_err(io::Error::kind).cloned();
            if before.as_ref() != Some(&seen) {
                if updates.send(self.judge(&text)).await.is_err() {
                    return;
                }
                before = Some(seen);
            }
            tokio::select! {
                () = updates.closed() => return,
                // Time is up, or something happened; the file tells what.
                _ = timeout(ANYWAY, changed.notified()) => {}
            }
            let quiet = async { while timeout(QUIET, changed.notified()).await.is_ok() {} };
            // In a folder that is never quiet too.
            let _ = timeout(LONGEST, quiet).await;
        }
    }
}

/// The folders on the way to a file: where its name stands and where each link leads to.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Folders {
    fn new(changed: Arc<Notify>) -> Self {
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                changed.notify_one();
            }
        });
        if let Err(error) = &watcher {
            warn!(%error, every = ?ANYWAY, "cannot watch the inventory, it is read from time to time");
        }
        Self {
            watcher: watcher.ok(),
            watched: BTreeSet::new(),
        }
    }

    /// Watches the folders that lead to `path` now, and no others.
    fn follow(&mut self, path: &Path) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let wanted = folders_to(path);
        for left in self.watched.difference(&wanted) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(left);
        }
        // Again also those that are watched: a folder of the same name may be another one.
        self.watched = wanted
            .into_iter()
            .filter(|folder| watcher.watch(folder, RecursiveMode::NonRecursive).is_ok())
            .collect();
    }
}

/// The folder of `path` and of everything that it links to, link by link. Links may also stand
/// in the middle of a path (`..data/inventory.yaml`), so each folder on the way counts.
fn folders_to(path: &Path) -> BTreeSet<PathBuf> {
    let mut folders = BTreeSet::new();
    let mut links = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        for part in path.ancestors() {
            let Some(folder) = part.parent() else {
                continue;
            };
            let Ok(target) = fs::read_link(part) else {
                // The file itself, whatever it is; folders that are no links do not move.
                if part == path {
                    folders.insert(or_here(folder));
                }
                continue;
            };
            folders.insert(or_here(folder));
            links += 1;
            if links > MOST_LINKS {
                return folders;
            }
            let rest = path.strip_prefix(part).unwrap_or(Path::new(""));
            let mut next = folder.join(target);
            // Joining nothing would add a slash at the end.
            if rest != Path::new("") {
                next.push(rest);
            }
            pending.push(next);
        }
    }
    folders
}

fn or_here(folder: &Path) -> PathBuf {
    match folder.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => folder.to_owned(),
    }
}

#[cfg(test)]
mod tests;
