//! Finds and removes a cluster by its name, even if another process started it.

use anyhow::{Result, bail};
use ipip_testkit::{
    cgroups,
    trash::{Item, Trash},
};
use std::{fs, path::PathBuf};

/// Removes a cluster that another process has left running. Its name is enough.
pub fn remove(prefix: &str) -> Result<()> {
    let trash = Trash::default();
    let names = format!("{prefix}-");
    for cgroup in cgroups::named(&names)? {
        trash.add(Item::Cgroup(cgroup));
    }
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if let Some(name) = entry.file_name().to_str()
            && name.starts_with(&names)
        {
            trash.add(Item::Namespace(name.into()));
        }
    }
    trash.add(Item::Folder(folder_of(prefix)));
    trash.empty();
    if leftovers(prefix)?.is_empty() {
        return Ok(());
    }
    bail!("not removed: {}", leftovers(prefix)?.join(", "))
}

/// Lists the cgroups, namespaces, mounts and files with the name of a cluster.
pub fn leftovers(prefix: &str) -> Result<Vec<String>> {
    let names = format!("{prefix}-");
    let mut found: Vec<String> = cgroups::named(&names)?
        .into_iter()
        .map(|cgroup| format!("cgroup {cgroup}"))
        .collect();
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&names) {
            found.push(format!("network namespace {name}"));
        }
    }
    let folder = folder_of(prefix);
    if folder.exists() {
        found.push(folder.display().to_string());
    }
    let folder = folder.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&folder))
            .map(|line| format!("mount {line}")),
    );
    Ok(found)
}

/// The folder of a cluster.
pub fn folder_of(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix)
}
