//! Debian's kernels, downloaded and unpacked into the tools' cache and never installed.

use crate::{
    command::{output, run},
    tools,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The kernels to test on: each is the newest that its suite has.
pub const KERNELS: [Kernel; 3] = [
    // The oldest that the datapath supports.
    Kernel {
        version: "5.10",
        suite: "bullseye-security",
        package: "linux-image-cloud-amd64",
    },
    // The kernel of Debian 12.
    Kernel {
        version: "6.1",
        suite: "bookworm-security",
        package: "linux-image-cloud-amd64",
    },
    // The first long-term kernel with TCX in Debian.
    Kernel {
        version: "6.12",
        suite: "bookworm-security",
        package: "linux-image-6.12-cloud-amd64",
    },
];

/// Modules that the tests need, in the order in which they can be loaded.
const MODULES: [&str; 7] = [
    "veth",
    "sch_ingress",
    "cls_bpf",
    "ip_tunnel",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "fou",
];

/// The archive keys of all suites; the package exists in Ubuntu too.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The package that brings [`KEYRING`].
const KEYRING_PACKAGE: &str = "debian-archive-keyring";

/// A kernel and its place in Debian's archive.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its series, as in `5.10`.
    pub version: &'static str,
    suite: &'static str,
    /// The package that depends on the newest kernel of the series.
    pub package: &'static str,
}

/// The files that a machine boots.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub image: PathBuf,
    /// The modules that the tests need, in the order in which they can be loaded.
    pub modules: Vec<PathBuf>,
}

/// The package that apt needs to trust Debian's archive, if it is missing.
pub fn missing_package() -> Option<&'static str> {
    (!Path::new(KEYRING).exists()).then_some(KEYRING_PACKAGE)
}

impl Kernel {
    /// The kernel from the cache, downloaded if it is not there yet.
    pub fn files(&self) -> Result<Files> {
        let folder = tools::root()?.join("kernels").join(self.version);
        // A cache that was filled for older tests may lack a module.
        if modules(&folder).is_none() {
            let _ = fs::remove_dir_all(&folder);
            self.download(&folder).with_context(|| {
                format!("getting Linux {} of Debian's {}", self.version, self.suite)
            })?;
        }
        Ok(Files {
            image: folder.join("vmlinuz"),
            modules: modules(&folder).context("a module is missing")?,
        })
    }

    /// Fills a temporary folder; renaming it makes it valid.
    fn download(&self, folder: &Path) -> Result<()> {
        let work = folder.with_file_name(format!("{}-loading", self.version));
        let _ = fs::remove_dir_all(&work);
        let apt = Apt::new(&work, self.suite)?;
        run(apt.command("apt-get").args(["--quiet", "update"]))?;
        let depends = output(apt.command("apt-cache").args(["depends", self.package]))
            .with_context(|| format!("{} has no package {}", self.suite, self.package))?;
        let package = newest(&depends)
            .with_context(|| format!("package {} names no kernel", self.package))?;
        run(apt
            .command("apt-get")
            .args(["download", package])
            .current_dir(&work))?;

        let unpacked = work.join("unpacked");
        let Some(archive) = find(&work, "linux-image-")? else {
            bail!("apt-get downloaded nothing into {}", work.display());
        };
        run(Command::new("dpkg").arg("-x").arg(archive).arg(&unpacked))?;
        let done = work.join("done");
        fs::create_dir_all(done.join("modules"))?;
        let image =
            find(&unpacked.join("boot"), "vmlinuz-")?.context("the package has no image")?;
        fs::rename(image, done.join("vmlinuz"))?;
        for name in MODULES {
            // New packages have compressed modules.
            let module = find(&unpacked.join("lib/modules"), &format!("{name}.ko"))?
                .with_context(|| format!("the package has no module {name}"))?;
            let to = module.file_name().context("a module's name")?;
            fs::rename(&module, done.join("modules").join(to))?;
        }
        fs::rename(&done, folder).with_context(|| format!("making {}", folder.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))
    }
}

/// The paths of all modules, or `None` if one is missing.
fn modules(folder: &Path) -> Option<Vec<PathBuf>> {
    let module = |name: &&str| find(&folder.join("modules"), &format!("{name}.ko")).ok()?;
    MODULES.iter().map(module).collect()
}

/// apt with one suite as its only source and its lists in a folder of its own: the machine's own
/// sources stay as they are.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(work: &Path, suite: &str) -> Result<Self> {
        let (lists, cache) = (work.join("lists"), work.join("cache"));
        for folder in [lists.join("partial"), cache.join("archives/partial")] {
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let sources = work.join("sources.list");
        let line = format!(
            "deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/debian-security {suite} main\n"
        );
        fs::write(&sources, line).with_context(|| format!("writing {}", sources.display()))?;
        let options = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", cache.display()),
            // apt's unprivileged user may not be allowed to write here.
            "APT::Sandbox::User=root".into(),
        ];
        Ok(Self {
            options: options.into(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// The kernel's package in the output of `apt-cache depends` for the package that depends on it.
fn newest(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
}

/// The first file below `folder` whose name begins with `prefix`.
pub fn find(folder: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    ensure!(folder.is_dir(), "there is no {}", folder.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_named = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        if path.is_file() && is_named {
            return Ok(Some(path));
        }
        if path.is_dir()
            && !path.is_symlink()
            && let Some(found) = find(&path, prefix)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_package_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(newest(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("linux-image-cloud-amd64\n"), None);
    }
}
