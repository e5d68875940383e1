//! `cargo xtask tools`: builds the programs of a real cluster from Go modules, once, into a cache
//! outside of `target` with one folder for each tool and version.

mod go;
mod list;

pub use go::native_arch;

use crate::command::is_installed;
use anyhow::{Context, Result, bail};
use clap::Args;
use go::Go;
use list::{TOOLS, Tool};
use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    time::Instant,
};

/// The variable that names the folder of the cache; the lab reads it too.
pub const VARIABLE: &str = "IPIP_TOOLS";

/// The tools to prepare.
#[derive(Args, Debug)]
pub struct Options {
    /// Only these tools; those of a cluster by default
    names: Vec<String>,
    /// Go's name of the processor to build for
    #[arg(long, default_value_t = native_arch().to_owned())]
    arch: String,
    /// Only print which tools are in the cache and which would be built
    #[arg(long)]
    dry_run: bool,
}

/// The folder of tools: each is in `ARCH/TOOL/VERSION`, with links to all programs in `ARCH/bin`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    arch: String,
}

/// Builds the tools that are not in the cache.
pub fn tools(options: &Options) -> Result<()> {
    let cache = Cache::open(&options.arch)?;
    let names: Vec<&str> = options.names.iter().map(String::as_str).collect();
    if options.dry_run {
        for tool in chosen(&names)? {
            let state = if cache.has(tool) { "is in" } else { "missing:" };
            println!("{tool}: {state} {}", cache.folder(tool).display());
        }
        return Ok(());
    }
    cache.prepare(&names)?;
    println!("{}", cache.programs().display());
    Ok(())
}

/// All tools of a cluster for this machine; builds the missing ones.
pub fn require() -> Result<Cache> {
    prepare(&[])
}

/// The tools `names` (those of a cluster if it is empty) for this machine; builds the missing ones.
pub fn prepare(names: &[&str]) -> Result<Cache> {
    let cache = Cache::open(native_arch())?;
    cache.prepare(names)?;
    Ok(cache)
}

impl Cache {
    /// The cache for a processor; creates nothing.
    pub fn open(arch: &str) -> Result<Self> {
        Ok(Self {
            root: root()?,
            arch: arch.to_owned(),
        })
    }

    /// The folder with a link to each program.
    pub fn programs(&self) -> PathBuf {
        self.root.join(&self.arch).join("bin")
    }

    /// Builds the missing tools among `names` (those of a cluster if it is empty).
    pub fn prepare(&self, names: &[&str]) -> Result<()> {
        let tools = chosen(names)?;
        fs::create_dir_all(&self.root)
            .with_context(|| format!("making {} (see {VARIABLE})", self.root.display()))?;
        // Two processes must not build the same tool.
        let lock = File::create(self.root.join("lock")).context("making the cache's lock")?;
        if lock.try_lock().is_err() {
            eprintln!("tools: waiting for another process that builds them");
            lock.lock().context("locking the cache")?;
        }
        let missing: Vec<&Tool> = tools.iter().copied().filter(|t| !self.has(t)).collect();
        if !missing.is_empty() {
            let go = Go::require()?;
            eprintln!(
                "tools: {} of {} are missing in {}; {go} builds them (all: some 15 minutes)",
                missing.len(),
                tools.len(),
                self.root.display()
            );
            for (done, tool) in missing.iter().enumerate() {
                eprintln!("tools: {}/{} {tool}", done + 1, missing.len());
                let began = Instant::now();
                self.build(tool, &go)
                    .with_context(|| format!("building {tool}"))?;
                eprintln!("tools: {tool} took {:.0} s", began.elapsed().as_secs_f64());
            }
        }
        tools.iter().try_for_each(|tool| self.link(tool))
    }

    fn has(&self, tool: &Tool) -> bool {
        self.folder(tool).is_dir()
    }

    fn folder(&self, tool: &Tool) -> PathBuf {
        self.root
            .join(&self.arch)
            .join(tool.name)
            .join(tool.version)
    }

    /// Builds into a temporary folder; renaming it makes it valid.
    fn build(&self, tool: &Tool, go: &Go) -> Result<()> {
        let work = self.root.join("building");
        remove(&work)?;
        let done = work.join("done");
        fs::create_dir_all(&done).with_context(|| format!("making {}", done.display()))?;
        go.build(tool, &self.arch, &work.join("module"), &done)?;
        let folder = self.folder(tool);
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&done, &folder).with_context(|| format!("making {}", folder.display()))?;
        remove(&work)
    }

    /// Makes `bin` link to the programs of this version.
    fn link(&self, tool: &Tool) -> Result<()> {
        let bin = self.programs();
        fs::create_dir_all(&bin)?;
        for entry in fs::read_dir(self.folder(tool))? {
            let name = entry?.file_name();
            let target = Path::new("..")
                .join(tool.name)
                .join(tool.version)
                .join(&name);
            let link = bin.join(&name);
            if fs::read_link(&link).is_ok_and(|old| old == target) {
                continue;
            }
            let new = bin.join(".new");
            remove(&new)?;
            std::os::unix::fs::symlink(&target, &new)
                .and_then(|()| fs::rename(&new, &link))
                .with_context(|| format!("linking {}", link.display()))?;
        }
        Ok(())
    }
}

/// The folder of the cache: `IPIP_TOOLS`, or `~/.cache/ipip/tools`.
pub fn root() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(VARIABLE) {
        return std::path::absolute(folder).context(VARIABLE);
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => env::home_dir()
            .with_context(|| {
                format!("no home folder; remedy: set {VARIABLE} to a folder for the tools")
            })?
            .join(".cache"),
    };
    Ok(cache.join("ipip/tools"))
}

fn chosen(names: &[&str]) -> Result<Vec<&'static Tool>> {
    if names.is_empty() {
        return Ok(TOOLS.iter().filter(|tool| !tool.on_demand).collect());
    }
    let find = |name: &&str| TOOLS.iter().find(|tool| tool.name == *name);
    if let Some(unknown) = names.iter().find(|name| find(name).is_none()) {
        let known: Vec<&str> = TOOLS.iter().map(|tool| tool.name).collect();
        bail!(
            "tool {unknown} is unknown; remedy: use one of {}",
            known.join(", ")
        );
    }
    Ok(names.iter().filter_map(find).collect())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Programs of Debian that a cluster needs, and the packages that bring them.
const PROGRAMS: [(&str, &str); 4] = [
    ("runc", "runc"),
    // The lab's gateways delete NAT entries with it.
    ("conntrack", "conntrack"),
    ("iptables", "iptables"),
    ("busybox", "busybox-static"),
];

/// The packages of [`PROGRAMS`] that this machine lacks.
pub fn missing_packages() -> Vec<&'static str> {
    PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_unknown_tool_is_refused_with_the_names_of_all_tools() {
        let error = chosen(&["kubelet", "kubelt"]).unwrap_err().to_string();
        assert!(
            error.contains("kubelt") && error.contains("kube-proxy"),
            "{error}"
        );
        assert_eq!(chosen(&["kubelet"]).unwrap().len(), 1);
        let of_a_cluster = TOOLS.iter().filter(|tool| !tool.on_demand).count();
        assert_eq!(chosen(&[]).unwrap().len(), of_a_cluster);
    }

    #[test]
    fn no_two_tools_share_a_folder() {
        let names: BTreeSet<_> = TOOLS.iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), TOOLS.len());
    }
}
