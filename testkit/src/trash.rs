//! The list of objects that a lab has created on this machine and must remove, even after a panic or Ctrl-C.

use crate::{cgroups, shell};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};
use std::{
    fs, io,
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

/// An object to remove.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A child process of ours: killed and reaped.
    Process(Pid),
    /// A named network namespace.
    Namespace(String),
    /// A folder with its content. On bpffs this unpins.
    Folder(PathBuf),
    /// A cgroup of every hierarchy, with the processes in it.
    Cgroup(String),
}

/// A list of objects to remove. Clones share it.
#[derive(Clone, Debug)]
pub struct Trash(Arc<Mutex<State>>);

impl Item {
    /// A child process of ours.
    pub fn process(child: &Child) -> Self {
        Self::Process(pid(child))
    }
}

/// The process ID of a child.
pub fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

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
    /// Adds `item` to the list. If its name is known in advance, add it before it is made.
    pub fn add(&self, item: Item) {
        self.state().items.push(item);
    }

    /// Takes `item`, which is removed already, off the list.
    pub fn forget(&self, item: &Item) {
        self.state().items.retain(|listed| listed != item);
    }

    /// Removes everything. Prints failures, and continues.
    pub fn empty(&self) {
        let mut state = self.state();
        if state.kept {
            return;
        }
        state.emptied = true;
        let mut items = std::mem::take(&mut state.items);
        // Processes first, because they write into the folders.
        items.sort_by_key(|item| match item {
            Item::Process(_) => 0,
            Item::Cgroup(_) => 1,
            Item::Namespace(_) | Item::Folder(_) => 2,
        });
        for item in items {
            if let Err(error) = remove(&item) {
                eprintln!("cleaning up {item:?}: {error}");
            }
        }
    }

    /// Keeps everything, also when [`Trash::empty`] is called.
    pub fn keep(&self) {
        self.state().kept = true;
    }

    /// Whether everything was removed already or must be kept. In both cases, owners of single objects do not remove
    /// them.
    pub fn settled(&self) -> bool {
        let state = self.state();
        state.emptied || state.kept
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// Makes Ctrl-C and SIGTERM empty every [`Trash`] and then end this process.
pub fn empty_all_on_interrupt() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    thread::spawn(move || {
        let name = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            }
        });
        eprintln!("\n{name}: cleaning up");
        for state in lock(&ALL).iter().filter_map(Weak::upgrade) {
            Trash(state).empty();
        }
        std::process::exit(130);
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
        Item::Cgroup(name) => cgroups::remove(name),
        Item::Folder(path) => match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        },
    }
}
