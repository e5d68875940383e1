//! Builds programs of Go modules.

use super::list::{KUBERNETES, Module, Tool};
use crate::command::{output, run};
use anyhow::{Context, Result, bail};
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest Go that Kubernetes accepts.
const OLDEST: (u32, u32) = (1, 26);

/// A Go toolchain that is new enough.
#[derive(Debug)]
pub struct Go {
    program: PathBuf,
    version: String,
}

impl fmt::Display for Go {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.program.display())
    }
}

impl Go {
    /// The first Go that is new enough, in PATH or in `/usr/local/go`, the usual place of its archive.
    pub fn require() -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut seen = Vec::new();
        for folder in env::split_paths(&path).chain(["/usr/local/go/bin".into()]) {
            let program = folder.join("go");
            let Some(version) = output(Command::new(&program).args(["env", "GOVERSION"])) else {
                continue;
            };
            if parse(&version).is_some_and(|found| found >= OLDEST) {
                return Ok(Self { program, version });
            }
            seen.push(format!("{} is {version}", program.display()));
        }
        let seen = match seen.as_slice() {
            [] => "none is in PATH".into(),
            some => some.join(", "),
        };
        let (major, minor) = OLDEST;
        bail!(
            "building Kubernetes needs Go {major}.{minor} or newer ({seen})\n\
             remedy: unpack the archive of https://go.dev/dl into /usr/local, so that \
             /usr/local/go/bin/go is there"
        )
    }

    /// Builds the packages of `tool` into `folder`, within a new module in `module`.
    pub fn build(&self, tool: &Tool, arch: &str, module: &Path, folder: &Path) -> Result<()> {
        fs::create_dir_all(module).with_context(|| format!("making {}", module.display()))?;
        match tool.module {
            Module::Kubernetes => self.kubernetes_module(module)?,
            Module::Own(path) => {
                let text = format!(
                    "module tools\n\ngo {}.{}\n\nrequire {path} {}\n",
                    OLDEST.0, OLDEST.1, tool.version
                );
                fs::write(module.join("go.mod"), text)?;
            }
        }
        for package in tool.packages {
            let mut command = self.command(module);
            command
                .env("GOARCH", arch)
                .env("CGO_ENABLED", if tool.cgo { "1" } else { "0" })
                .args(["build", "-trimpath", "-tags", &tool.tags.join(",")])
                .args(["-ldflags", &linker_flags(tool)])
                .arg("-o")
                .arg(folder.join(program_name(tool, package)))
                .arg(package);
            run(&mut command)?;
        }
        Ok(())
    }

    /// A module with the dependencies that Kubernetes' own go.mod chooses. Its staging folders are
    /// published as modules with the same minor and patch number.
    fn kubernetes_module(&self, module: &Path) -> Result<()> {
        let asked = format!("k8s.io/kubernetes@{KUBERNETES}");
        fs::write(module.join("go.mod"), "module tools\n")?;
        let mut download = self.command(module);
        download.args(["mod", "download", "-json", &asked]);
        let printed = download.output().context("running go mod download")?;
        let text = String::from_utf8_lossy(&printed.stdout);
        let Some(source) = json_field(&text, "Dir") else {
            let why = String::from_utf8_lossy(&printed.stderr);
            bail!("downloading {asked}: {}{text}", why.trim());
        };
        let source = Path::new(source);
        let own = fs::read_to_string(source.join("go.mod"))
            .with_context(|| format!("reading go.mod of {}", source.display()))?;
        fs::write(module.join("go.mod"), outside_its_repository(&own))?;
        let sums = fs::read(source.join("go.sum"))
            .with_context(|| format!("reading go.sum of {}", source.display()))?;
        fs::write(module.join("go.sum"), sums)?;
        Ok(())
    }

    fn command(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(module)
            .env("GOFLAGS", "-mod=mod -buildvcs=false")
            .env("GOWORK", "off");
        command
    }
}

/// Go's name of this machine's processor.
pub fn native_arch() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The name of a package's program. etcd's package is the root of a module, whose last part is its
/// major version.
fn program_name<'a>(tool: &'a Tool, package: &'a str) -> &'a str {
    match package.rsplit('/').next() {
        Some("v3") | None => tool.name,
        Some(last) => last,
    }
}

fn linker_flags(tool: &Tool) -> String {
    let base = "-s -w";
    match tool.module {
        // API server and kubelet compare their versions and refuse an unknown one.
        Module::Kubernetes => {
            let mut numbers = KUBERNETES.trim_start_matches('v').split('.');
            let major = numbers.next().unwrap_or_default();
            let minor = numbers.next().unwrap_or_default();
            let version = "k8s.io/component-base/version";
            format!(
                "{base} -X {version}.gitVersion={KUBERNETES} -X {version}.gitMajor={major} \
                 -X {version}.gitMinor={minor}"
            )
        }
        Module::Own(_) => match tool.version_variable {
            Some(variable) => format!("{base} -X {variable}={}", tool.version),
            None => base.into(),
        },
    }
}

/// Changes Kubernetes' go.mod so that it refers only to published modules.
fn outside_its_repository(own: &str) -> String {
    let published = format!("v0.{}", KUBERNETES.trim_start_matches("v1."));
    let mut text = String::new();
    for line in own.lines() {
        let line = match line.split_once(" => ./staging/src/") {
            Some((before, module)) => format!("{before} => {module} {published}"),
            None if line.starts_with("module ") => "module tools".into(),
            None => line.into(),
        };
        text += &line;
        text.push('\n');
    }
    text + &format!("\nrequire k8s.io/kubernetes {KUBERNETES}\n")
}

/// A string field of the flat JSON that `go mod download` prints.
fn json_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let key = format!("\"{name}\": \"");
    text.lines()
        .find_map(|line| line.trim().strip_prefix(&key))?
        .trim_end_matches(',')
        .strip_suffix('"')
}

/// Major and minor number in `go1.26.8`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_are_compared_by_number() {
        assert!(parse("go1.26.8").unwrap() >= OLDEST);
        assert!(parse("go1.3").unwrap() < OLDEST);
        assert_eq!(parse("devel"), None);
    }

    #[test]
    fn staging_folders_become_published_modules() {
        let own = "module k8s.io/kubernetes\n\ngo 1.26.0\n\nreplace (\n\
                   \tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let text = outside_its_repository(own);
        assert!(text.starts_with("module tools\n"));
        assert!(
            text.contains("\tk8s.io/api => k8s.io/api v0.36.3\n"),
            "{text}"
        );
        assert!(text.ends_with("require k8s.io/kubernetes v1.36.3\n"));
    }

    #[test]
    fn the_folder_of_a_download_is_read_from_what_go_prints() {
        let printed =
            "{\n\t\"Path\": \"k8s.io/kubernetes\",\n\t\"Dir\": \"/go/k@v1\",\n\t\"Sum\": \"h1\"\n}";
        assert_eq!(json_field(printed, "Dir"), Some("/go/k@v1"));
        assert_eq!(json_field(printed, "Error"), None);
    }
}
