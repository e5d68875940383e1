//! What a lab has made on this machine and must remove, also after a panic or Ctrl-C.

use crate::shell;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
};

/// Something to remove.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A child process of ours: killed and reaped.
    Process(Pid),
    /// A named network namespace.
    Namespace(String),
    /// A folder with all that it holds; on bpffs this unpins.
    Folder(PathBuf),
}

/// The list of what to remove. Clones share it.
#[derive(Clone, Debug)]
pub struct Trash(Arc<Mutex<State>>);

/// Every list of this process, for [`empty_all_on_interrupt`].
static ALL: Mutex<Vec<Weak<Mutex<State>>>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
struct State {
    items: Vec<Item>,
    emptied: bool,
    kept: bool,
}

impl Default for Trash {
    fn default() -> Self {
        let state = Arc::default();
        lock(&ALL).push(Arc::downgrade(&state));
        Self(state)
    }
}

impl Trash {
    /// Puts `item` on the list. Call it before the thing is made where its name is known.
    pub fn add(&self, item: Item) {
        self.state().items.push(item);
    }

    /// Takes `item` off the list: it has been removed already.
    pub fn forget(&self, item: &Item) {
        self.state().items.retain(|listed| listed != item);
    }

    /// Removes everything, the latest first, and goes on past failures, which it prints.
    pub fn empty(&self) {
        let mut state = self.state();
        if state.kept {
            return;
        }
        state.emptied = true;
        let mut items = std::mem::take(&mut state.items);
        // Processes first: they would write into what goes next.
        items.sort_by_key(|item| !matches!(item, Item::Process(_)));
        for item in items {
            if let Err(error) = remove(&item) {
                eprintln!("cleaning up {item:?}: {error}");
            }
        }
    }

    /// Leaves everything where it is, for good.
    pub fn keep(&self) {
        self.state().kept = true;
    }

    /// Whether things are no longer for their owners to remove: it is done, or they are kept.
    pub fn settled(&self) -> bool {
        let state = self.state();
        state.emptied || state.kept
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// From now on Ctrl-C and SIGTERM empty every [`Trash`] and end this process. Call it before any
/// other thread starts: threads inherit that these signals are left to one that waits for them.
pub fn empty_all_on_interrupt() -> nix::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: cleaning up");
            for state in lock(&ALL).iter().filter_map(Weak::upgrade) {
                Trash(state).empty();
            }
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(item: &Item) -> anyhow::Result<()> {
    match item {
        Item::Process(pid) => {
            match kill(*pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
            match waitpid(*pid, None) {
                Ok(_) | Err(Errno::ECHILD) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        Item::Namespace(name) => {
            if fs::exists(format!("/run/netns/{name}"))? {
                shell::run(&format!("ip netns delete {name}"))?;
            }
            Ok(())
        }
        Item::Folder(path) => match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}
