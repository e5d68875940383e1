//! The cgroup of a simulated machine, in every hierarchy of this host. With cgroup v2 there is one.

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The cgroup of a machine's daemons, below the machine's own.
const SYSTEM: &str = "system";

/// Makes the cgroup `name` in every hierarchy, and returns the folder of the daemons' cgroup.
pub fn create(name: &str) -> Result<PathBuf> {
    let hierarchies = hierarchies()?;
    for hierarchy in &hierarchies {
        let folder = hierarchy.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        // An empty cpuset (cgroup v1) refuses processes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let above = hierarchy.join(file);
            if above.exists() {
                fs::write(folder.join(file), fs::read(above)?)?;
            }
        }
    }
    // One hierarchy is enough to find all processes. `pids` needs no settings.
    let system = hierarchies
        .iter()
        .find(|hierarchy| hierarchy.ends_with("pids"))
        .or(hierarchies.first())
        .map(|hierarchy| hierarchy.join(name).join(SYSTEM))
        .context("this host has no cgroups mounted below /sys/fs/cgroup")?;
    fs::create_dir_all(&system).with_context(|| format!("making {}", system.display()))?;
    Ok(system)
}

/// Kills every process in the cgroup `name` and below, and removes it from every hierarchy.
pub fn remove(name: &str) -> Result<()> {
    let folders: Vec<PathBuf> = hierarchies()?
        .iter()
        .map(|hierarchy| hierarchy.join(name))
        .filter(|folder| folder.exists())
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // Repeated, because a process may fork before it is killed.
        for pid in folders.iter().flat_map(|folder| processes(folder)) {
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let left = folders
            .iter()
            .find_map(|folder| remove_tree(folder).err().map(|error| (folder, error)));
        match left {
            None => return Ok(()),
            Some((folder, error)) if Instant::now() > deadline => {
                bail!("cannot remove {}: {error}", folder.display())
            }
            Some(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The names of all cgroups that begin with `prefix`.
pub fn named(prefix: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = hierarchies()?
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// The roots of all hierarchies: those of cgroup v1, and the one of cgroup v2.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(hierarchies_in(&mounts))
}

fn hierarchies_in(mounts: &str) -> Vec<PathBuf> {
    let of_type = |wanted: &str| -> Vec<PathBuf> {
        mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (folder, kind) = (fields.next()?, fields.next()?);
                (kind == wanted && folder.starts_with("/sys/fs/cgroup"))
                    .then(|| PathBuf::from(folder))
            })
            .collect()
    };
    let mut found = of_type("cgroup");
    found.extend(of_type("cgroup2"));
    found
}

fn processes(folder: &Path) -> Vec<Pid> {
    let mut found: Vec<Pid> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .map(Pid::from_raw)
        .collect();
    for child in children(folder) {
        found.extend(processes(&child));
    }
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and those below it. Its files cannot be removed; they go with the folder.
fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in children(folder) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_on_either_version_of_cgroups() {
        let old = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                   cgroup /sys/fs/cgroup/pids cgroup rw,pids 0 0\n\
                   cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = hierarchies_in(old);
        assert_eq!(
            found,
            [
                Path::new("/sys/fs/cgroup/pids"),
                Path::new("/sys/fs/cgroup/unified")
            ]
        );
        let new = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(hierarchies_in(new), [Path::new("/sys/fs/cgroup")]);
    }
}
