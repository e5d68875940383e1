//! `cargo xtask clean`: removes the processes, namespaces, pins and files that a lab, a test or a
//! crash left behind.

use crate::command::{as_root, is_root, run};
use anyhow::{Context, Result, bail};
use std::{
    collections::HashSet,
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

const NAMESPACES: &str = "/run/netns";

const CGROUPS: &str = "/sys/fs/cgroup";

/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// Objects on this machine whose names start with the project's prefix.
#[derive(Debug, Default)]
struct Leftovers {
    /// Processes in network namespaces or cgroups of the project.
    processes: Vec<u32>,
    /// Cgroups of the machines of a cluster.
    cgroups: Vec<PathBuf>,
    /// Names of network namespaces.
    namespaces: Vec<String>,
    /// Folders of pins; removing the last pin of a link detaches its program.
    pins: Vec<PathBuf>,
    /// Folders of run-time state and temporary files.
    folders: Vec<PathBuf>,
}

/// Removes all leftovers, or only lists them with `dry_run`. If one cannot be removed, the others are
/// still removed.
pub fn clean(dry_run: bool) -> Result<()> {
    if !is_root() {
        let program = env::current_exe().context("the path of this program")?;
        let program = program.to_string_lossy();
        eprintln!("not root: continuing through sudo");
        let dry_run = dry_run.then_some("--dry-run");
        let args: Vec<_> = ["clean"].into_iter().chain(dry_run).collect();
        return run(&mut as_root(&program, &args));
    }
    let leftovers = Leftovers::find();
    leftovers.print(if dry_run { "would remove" } else { "removing" });
    if dry_run {
        return Ok(());
    }
    let errors = leftovers.remove();
    if errors.is_empty() {
        println!("clean");
        return Ok(());
    }
    for error in &errors {
        eprintln!("{error:#}");
    }
    bail!("{} leftovers could not be removed", errors.len())
}

impl Leftovers {
    fn find() -> Self {
        let namespaces = entries(Path::new(NAMESPACES), "ipip-");
        let temporary = env::temp_dir();
        let cgroups = cgroups();
        let mut processes = processes_in(&namespaces);
        let spared = ancestors();
        // Pods of a cluster have namespaces without a name.
        processes.extend(
            cgroups
                .iter()
                .flat_map(|cgroup| processes_of(cgroup))
                .filter(|pid| !spared.contains(pid)),
        );
        processes.sort_unstable();
        processes.dedup();
        Self {
            processes,
            cgroups,
            namespaces: namespaces.iter().filter_map(|p| name(p)).collect(),
            pins: entries(Path::new("/sys/fs/bpf"), "ipip"),
            folders: [Path::new("/run"), &temporary]
                .iter()
                .flat_map(|folder| entries(folder, "ipip-"))
                .collect(),
        }
    }

    fn print(&self, verb: &str) {
        for pid in &self.processes {
            println!("{verb}: process {pid} ({})", command_of(*pid));
        }
        for namespace in &self.namespaces {
            println!("{verb}: network namespace {namespace}");
        }
        for folder in self.cgroups.iter().chain(&self.pins).chain(&self.folders) {
            println!("{verb}: {}", folder.display());
        }
    }

    /// Ends processes first, because they would create more objects. Deletes namespaces last, because they
    /// contain the interfaces from which the removed pins detach programs.
    fn remove(&self) -> Vec<anyhow::Error> {
        let ended = end(&self.processes);
        let cgroups = self.cgroups.iter().map(|cgroup| {
            remove_cgroup(cgroup).with_context(|| format!("removing {}", cgroup.display()))
        });
        let folders = self.pins.iter().chain(&self.folders).map(|folder| {
            remove_tree(folder).with_context(|| format!("removing {}", folder.display()))
        });
        let namespaces = self.namespaces.iter().map(|name| delete_namespace(name));
        [ended]
            .into_iter()
            .chain(cgroups)
            .chain(folders)
            .chain(namespaces)
            .filter_map(Result::err)
            .collect()
    }
}

/// Entries of `folder` whose names begin with `prefix`, in order; none if it cannot be read.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| name(path).is_some_and(|name| name.starts_with(prefix)))
        .collect();
    found.sort();
    found
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The processes with a thread in one of these network namespaces (a lab has a thread for each of
/// its hosts), except this process and its parents: the command may run in a shell inside a lab.
fn processes_in(namespaces: &[PathBuf]) -> Vec<u32> {
    let identity = |path: PathBuf| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let ours: HashSet<_> = namespaces.iter().cloned().filter_map(identity).collect();
    let spared = ancestors();
    let is_inside = |pid: &u32| {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        threads.into_iter().flatten().flatten().any(|thread| {
            identity(thread.path().join("ns/net")).is_some_and(|ns| ours.contains(&ns))
        })
    };
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !spared.contains(pid))
        .filter(is_inside)
        .collect();
    pids.sort_unstable();
    pids
}

/// The cgroups of the project, at the top of the v2 hierarchy or of each v1 hierarchy.
fn cgroups() -> Vec<PathBuf> {
    let root = Path::new(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        return entries(root, "ipip-");
    }
    folders_in(root)
        .iter()
        .flat_map(|hierarchy| entries(hierarchy, "ipip-"))
        .collect()
}

/// The processes in a cgroup and below.
fn processes_of(cgroup: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in folders_in(cgroup) {
        pids.extend(processes_of(&child));
    }
    pids
}

/// Removes a cgroup and those below it. The kernel removes the files of a cgroup with its folder.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for child in folders_in(cgroup) {
        remove_cgroup(&child)?;
    }
    fs::remove_dir(cgroup)
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let mut found = entries(folder, "");
    found.retain(|path| path.is_dir() && !path.is_symlink());
    found
}

fn ancestors() -> HashSet<u32> {
    let mut found = HashSet::new();
    let mut next = Some(std::process::id());
    while let Some(pid) = next.filter(|pid| *pid != 0 && found.insert(*pid)) {
        next = fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()
            .and_then(|status| parent(&status));
    }
    found
}

/// The parent's process id in the text of `/proc/PID/status`.
fn parent(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

fn command_of(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// Ends exactly these processes: by SIGTERM, and after [`GRACE`] by SIGKILL.
fn end(pids: &[u32]) -> Result<()> {
    signal("TERM", pids)?;
    let deadline = Instant::now() + GRACE;
    while pids.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let stubborn: Vec<u32> = pids.iter().copied().filter(|pid| is_alive(*pid)).collect();
    signal("KILL", &stubborn)
}

fn signal(signal: &str, pids: &[u32]) -> Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    // Every machine has the shell's own `kill`. A process that has ended already is no error.
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    let line = format!("kill -{signal} {} 2>/dev/null || true", list.join(" "));
    Command::new("sh")
        .args(["-c", &line])
        .status()
        .map(drop)
        .with_context(|| format!("sending SIG{signal}"))
}

/// Whether a process exists and is not a zombie.
fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !state.is_empty() && !state.contains("State:\tZ")
}

/// Removes a file, or a folder with its content; a missing one is no error.
fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

fn delete_namespace(name: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(["netns", "delete", name])
        .output()
        .context("running ip")?;
    let file = Path::new(NAMESPACES).join(name);
    if output.status.success() || !file.exists() {
        return Ok(());
    }
    // A crash between the creation of the file and the mount on it leaves a plain file.
    fs::remove_file(&file).with_context(|| {
        let why = String::from_utf8_lossy(&output.stderr);
        format!("removing network namespace {name}: {}", why.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_and_its_parents_are_spared() {
        let spared = ancestors();
        assert!(spared.contains(&std::process::id()));
        assert!(spared.contains(&std::os::unix::process::parent_id()));
    }

    #[test]
    fn only_entries_of_our_prefix_are_found_and_a_missing_folder_has_none() {
        let folder = env::temp_dir().join(format!("ipip-clean-test-{}", std::process::id()));
        for name in ["ipip-b", "ipip-a", "other", "xipip-c"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let found = entries(&folder, "ipip-");
        assert_eq!(found, [folder.join("ipip-a"), folder.join("ipip-b")]);
        remove_tree(&folder).unwrap();
        remove_tree(&folder).unwrap();
        assert_eq!(entries(&folder, "ipip-"), Vec::<PathBuf>::new());
    }
}
