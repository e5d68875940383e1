//! `cargo xtask image`: builds container images from static programs, without a daemon.

mod kubeadm;

pub use kubeadm::kubeadm;

use crate::{
    command::{cargo, cargo_home, filter, is_installed, output, run, target_dir, workspace},
    ebpf, setup,
    tools::{self, Cache},
};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The variable that names the folder of images to the lab.
pub const VARIABLE: &str = "IPIP_IMAGES";

/// The name of the product's image; its tag is the version.
const NAME: &str = "ghcr.io/ipip-dev/ipip";

/// Upper bound of the bytes that a node must pull.
const MAX_BYTES: u64 = 25 << 20;

/// Reference plugins in the image, which the agent installs on the node.
const PLUGINS: [&str; 4] = ["bandwidth", "host-local", "loopback", "portmap"];

/// The images to build.
#[derive(Args, Debug)]
pub struct Options {
    /// Processors to build for
    #[arg(long = "arch", value_enum, default_values_t = [Arch::native()])]
    archs: Vec<Arch>,
    /// The images of the Kubernetes lab (pause, busybox, CoreDNS, metrics-server) instead
    #[arg(long)]
    lab: bool,
}

/// A processor that images are built for, as Go and OCI call it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// The processor of this machine.
    pub fn native() -> Self {
        match tools::native_arch() {
            "arm64" => Self::Arm64,
            _ => Self::Amd64,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Rust's target, whose programs are static.
    fn triple(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// A C compiler for the target, which a dependency needs, the folder of its headers, and the
    /// packages that bring them.
    fn compiler(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match (self, Self::native()) {
            (Self::Amd64, Self::Amd64) | (Self::Arm64, Self::Arm64) => {
                ("musl-gcc", "/usr/include", &["musl-tools"])
            }
            (Self::Amd64, _) => (
                "x86_64-linux-gnu-gcc",
                "/usr/x86_64-linux-gnu/include",
                &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            ),
            (Self::Arm64, _) => (
                "aarch64-linux-gnu-gcc",
                "/usr/aarch64-linux-gnu/include",
                &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            ),
        }
    }

    /// The packages of the compiler, if this machine lacks it.
    fn missing_packages(self) -> &'static [&'static str] {
        match self.compiler() {
            (compiler, headers, _) if is_installed(compiler) && Path::new(headers).is_dir() => &[],
            (.., packages) => packages,
        }
    }
}

/// `cargo xtask image`.
pub fn image(options: &Options) -> Result<()> {
    if options.lab {
        return lab();
    }
    product(&options.archs)
}

/// Builds the product's image: `target/image/ipip/` (an OCI layout) and `target/image/ipip.tar`.
pub fn product(archs: &[Arch]) -> Result<()> {
    let object = release_object()?;
    let mut images = Vec::new();
    for &arch in archs {
        images.push(json!({
            "arch": arch.name(),
            "entrypoint": ["/ipip-agent"],
            "labels": labels(),
            "files": product_files(arch, &object)?,
        }));
    }
    let sizes = write("ipip", &format!("{NAME}:{}", version()), &images)?;
    for (arch, bytes) in archs.iter().zip(sizes) {
        println!("{}: {:.1} MiB compressed", arch.name(), mebibytes(bytes));
        ensure!(
            bytes <= MAX_BYTES,
            "the image for {} has {:.1} MiB, more than {:.0}",
            arch.name(),
            mebibytes(bytes),
            mebibytes(MAX_BYTES)
        );
    }
    let folder = folder()?;
    println!("{0}/ipip\n{0}/ipip.tar", folder.display());
    Ok(())
}

/// Installs what [`programs`] needs.
pub fn prepare() -> Result<()> {
    let packages = [
        &tools::missing_packages(),
        Arch::native().missing_packages(),
    ];
    setup::packages(&packages.concat())
}

/// Builds everything of the images for this machine that takes long.
pub fn programs() -> Result<()> {
    tools::require()?;
    let object = release_object()?;
    static_programs(Arch::native(), &object).map(drop)
}

/// Builds the images of the Kubernetes lab from programs of the tools' cache and from Debian's busybox.
pub fn lab() -> Result<()> {
    setup::packages(&tools::missing_packages())?;
    let cache = tools::require()?;
    pause()?;
    let busybox = busybox()?;
    let applets = output(Command::new(busybox).arg("--list")).context("running busybox --list")?;
    let applets: Vec<&str> = applets.lines().filter(|name| *name != "busybox").collect();
    simple(
        "busybox",
        "lab.local/busybox:1",
        &["/bin/sh"],
        &[("bin/busybox", busybox)],
        &applets,
    )?;
    let agnhost = cache.programs().join("agnhost");
    simple(
        "agnhost",
        "lab.local/agnhost:1",
        &["/agnhost"],
        &[("bin/busybox", busybox), ("agnhost", &agnhost)],
        &applets,
    )?;
    for program in ["coredns", "metrics-server"] {
        let path = cache.programs().join(program);
        let entrypoint = format!("/{program}");
        let name = format!("lab.local/{program}:1");
        simple(program, &name, &[&entrypoint], &[(program, &path)], &[])?;
    }
    Ok(())
}

/// Builds the image of sandboxes from Debian's busybox.
pub fn pause() -> Result<()> {
    let sleep = ["/bin/busybox", "sleep", "2147483647"];
    simple(
        "pause",
        "lab.local/pause:1",
        &sleep,
        &[("bin/busybox", busybox()?)],
        &[],
    )
}

/// Debian's static busybox.
pub fn busybox() -> Result<&'static Path> {
    ["/usr/bin/busybox", "/bin/busybox"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
        .context("busybox is absent; remedy: install the package busybox-static")
}

/// Builds an image of some programs for this machine, with `links` in `/bin` to busybox.
fn simple(
    file: &str,
    name: &str,
    entrypoint: &[&str],
    programs: &[(&str, &Path)],
    links: &[&str],
) -> Result<()> {
    let programs = programs.iter().map(|(path, source)| program(path, source));
    let links = links
        .iter()
        .map(|link| json!({"path": format!("bin/{link}"), "link": "/bin/busybox"}));
    write_simple(file, name, entrypoint, programs.chain(links).collect())
}

/// Builds an image of some files for this machine.
fn write_simple(file: &str, name: &str, entrypoint: &[&str], files: Vec<Value>) -> Result<()> {
    let image = json!({
        "arch": Arch::native().name(),
        "entrypoint": entrypoint,
        "labels": {},
        "files": files,
    });
    write(file, name, &[image]).map(drop)
}

/// A program of an image, from a file here.
fn program(path: &str, source: &Path) -> Value {
    json!({"path": path, "program": source})
}

fn product_files(arch: Arch, object: &Path) -> Result<Vec<Value>> {
    let cache = Cache::open(arch.name())?;
    cache.prepare(&["cni-plugins"])?;
    let programs = static_programs(arch, object)?;
    let mut files = vec![
        program("ipip-agent", &programs.join("ipip-agent")),
        // In the PATH of `kubectl exec`.
        program("bin/ipipctl", &programs.join("ipipctl")),
        program("cni/ipip", &programs.join("ipip")),
    ];
    for plugin in PLUGINS {
        let source = cache.programs().join(plugin);
        files.push(program(&format!("cni/{plugin}"), &source));
    }
    Ok(files)
}

fn release_object() -> Result<PathBuf> {
    ebpf::build(ebpf::Options {
        release: true,
        ..Default::default()
    })
}

/// Builds the product's programs, which embed `object`, without any shared library; returns their folder.
fn static_programs(arch: Arch, object: &Path) -> Result<PathBuf> {
    let triple = arch.triple();
    let (compiler, ..) = arch.compiler();
    setup::packages(arch.missing_packages())?;
    if !has_target(triple) {
        run(Command::new("rustup").args(["target", "add", triple]))?;
    }
    // A folder of its own: a test run builds them while it builds other things.
    let folder = target_dir()?.join("static");
    let mut command = cargo();
    command
        .args(["build", "--release", "--target", triple, "--target-dir"])
        .arg(&folder);
    for package in ["ipip-agent", "ipip-cni", "ipipctl"] {
        command.args(["--package", package]);
    }
    let variable = triple.to_uppercase().replace('-', "_");
    command
        .env(ebpf::VARIABLE, object)
        // Rust's own linker and libc make a cross linker unnecessary.
        .env(format!("CARGO_TARGET_{variable}_LINKER"), "rust-lld")
        .env(format!("CC_{}", triple.replace('-', "_")), compiler)
        // No path of this machine appears in a released program.
        .env(
            format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
            format!(
                "--remap-path-prefix={}=/ipip --remap-path-prefix={}=/cargo",
                workspace().display(),
                cargo_home().display()
            ),
        );
    run(&mut command)?;
    Ok(folder.join(triple).join("release"))
}

/// Whether the toolchain has a standard library for the target.
fn has_target(triple: &str) -> bool {
    let folder =
        output(Command::new("rustc").args(["--print", "target-libdir", "--target", triple]));
    folder.is_some_and(|folder| Path::new(&folder).is_dir())
}

/// Runs `oci-image`, which writes an image for each processor. Returns for each the bytes that a node must
/// pull.
fn write(file: &str, name: &str, images: &[Value]) -> Result<Vec<u64>> {
    let folder = folder()?;
    let request = json!({"folder": folder, "file": file, "name": name, "images": images});
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "oci-image"]);
    let sizes = filter(&mut command, &request.to_string())?;
    eprintln!("image: {name} is in {}/{file}.tar", folder.display());
    serde_json::from_str(&sizes).context("reading what oci-image prints")
}

fn labels() -> Value {
    const PREFIX: &str = "org.opencontainers.image";
    let mut labels = json!({
        format!("{PREFIX}.title"): "ipip",
        format!("{PREFIX}.description"): "Joins the nodes of a Kubernetes cluster over clouds, by eBPF",
        format!("{PREFIX}.source"): env!("CARGO_PKG_REPOSITORY"),
        format!("{PREFIX}.licenses"): env!("CARGO_PKG_LICENSE"),
        format!("{PREFIX}.version"): version(),
    });
    let mut git = Command::new("git");
    git.current_dir(workspace()).args(["rev-parse", "HEAD"]);
    if let Some(revision) = output(&mut git) {
        labels[format!("{PREFIX}.revision")] = revision.into();
    }
    labels
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The folder of all images.
pub fn folder() -> Result<PathBuf> {
    Ok(target_dir()?.join("image"))
}
