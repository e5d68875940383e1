//! Tests of the datapath on Debian's kernels, booted in QEMU with only the tests. The machine is emulated, so
//! KVM is not needed, and durations have no meaning.

mod console;
mod debian;

use crate::{
    command::{cargo, is_installed, listen, run, shown, target_dir, workspace},
    image::busybox,
    setup,
    tally::Tally,
    tools,
};
use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::Message;
use console::Console;
use debian::{Files, KERNELS};
pub use debian::{KEYRING, Kernel, find, missing_package};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The emulator of amd64 machines.
pub const QEMU: &str = "qemu-system-x86_64";
/// Programs that the area runs, and the packages that bring them.
const PROGRAMS: [(&str, &str); 2] = [(QEMU, "qemu-system-x86"), ("busybox", "busybox-static")];

/// Test binaries that need a kernel and nothing else.
#[derive(Debug)]
pub struct Tests {
    /// Package and test.
    binaries: &'static [(&'static str, &'static str)],
    /// Of these tests, only the parts whose names contain one of the words, unless the command line selects others.
    parts: &'static [(&'static str, &'static [&'static str])],
    /// Variables that the tests read.
    variables: &'static [(&'static str, &'static str)],
    /// Files of the sources that the tests read: a folder of the workspace, and its place in the machine.
    files: Option<(&'static str, &'static str)>,
    /// Upper bound for all tests of one kernel, in seconds.
    timeout: &'static str,
}

/// What of the datapath depends most on the kernel: loading, attaching, handover, reading of maps, offloads.
pub const DATAPATH: Tests = Tests {
    binaries: &[
        ("ipip-datapath", "programs"),
        ("ipip-datapath", "attached"),
        ("ipip-datapath", "carried"),
        ("ipip-datapath", "handover"),
        ("ipip-datapath", "pinned"),
        ("ipip-agent", "fou"),
    ],
    parts: &[(
        "programs",
        &[
            "instructions",
            "batches",
            "sent",
            "memory",
            "gso",
            "offloads",
        ],
    )],
    variables: &[],
    files: None,
    timeout: "1200",
};

/// Every packet test. Each loads the programs, which takes seconds on an emulated machine.
pub const PACKETS: Tests = Tests {
    binaries: &[("ipip-datapath", "programs")],
    parts: &[],
    variables: &[],
    files: None,
    timeout: "1800",
};

/// The hostile-packet campaign.
pub const HOSTILE: Tests = Tests {
    binaries: &[("ipip-datapath", "hostile")],
    parts: &[],
    variables: &[
        ("IPIP_HOSTILE_PACKETS", "100000"),
        ("IPIP_HOSTILE_STORED", "/stored"),
    ],
    files: Some(("datapath/tests/hostile/stored", "stored")),
    timeout: "1800",
};

/// The kernels of these versions, or all kernels if `versions` is empty.
pub fn chosen(versions: &[String]) -> Result<Vec<Kernel>> {
    let find = |version: &String| KERNELS.iter().find(|it| it.version == *version).copied();
    if versions.is_empty() {
        return Ok(KERNELS.into());
    }
    if let Some(unknown) = versions.iter().find(|version| find(version).is_none()) {
        bail!(
            "--kernel {unknown} is unknown; remedy: use one of {}",
            KERNELS.map(|it| it.version).join(", ")
        );
    }
    Ok(versions.iter().filter_map(find).collect())
}

/// Runs the tests on each of the kernels; `args` are for the test binaries.
pub fn test(tests: &Tests, kernels: &[Kernel], args: &[String]) -> Result<(Tally, Vec<String>)> {
    ensure!(
        tools::native_arch() == "amd64",
        "Debian's kernels and their tests are for amd64 machines"
    );
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    packages.extend(missing_package());
    setup::packages(&packages)?;
    let binaries = static_tests(tests)?;
    let (mut sum, mut failures, mut lines) = (Tally::default(), Vec::new(), Vec::new());
    for kernel in kernels {
        // If one kernel cannot be downloaded or booted, the others are still tested.
        let (tally, failed) = on_kernel(kernel, tests, &binaries, args).unwrap_or_else(|error| {
            let failed = Tally {
                failed: 1,
                ..Tally::default()
            };
            (failed, vec![format!("{error:#}")])
        });
        lines.push(format!("Linux {:<5} {tally}", kernel.version));
        failures.extend(
            failed
                .iter()
                .map(|what| format!("Linux {}: {what}", kernel.version)),
        );
        sum += tally;
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    Ok((sum, failures))
}

/// Boots one kernel with the tests; prints and counts their results.
fn on_kernel(
    kernel: &Kernel,
    tests: &Tests,
    binaries: &[PathBuf],
    args: &[String],
) -> Result<(Tally, Vec<String>)> {
    let files = kernel.files()?;
    let folder = target_dir()?.join("kernels").join(kernel.version);
    let initramfs = Initramfs::new(folder, &files)?;
    initramfs.add_tests(tests, binaries, args)?;
    let mut command = machine(&files.image, &initramfs.pack()?, tests.timeout);
    let mut console = Console::default();
    let mut stdout = std::io::stdout();
    listen(command.stdin(Stdio::null()), |line| {
        match console.line(line) {
            Some(shown) => writeln!(stdout, "{shown}"),
            None => Ok(()),
        }
    })?;
    console.before().iter().for_each(|line| println!("{line}"));
    let names: Vec<&str> = tests.binaries.iter().map(|(_, test)| *test).collect();
    Ok(console.finish(&names))
}

fn machine(kernel: &Path, initramfs: &Path, timeout: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([timeout, QEMU])
        // QEMU 7.2 crashes when Linux 6.12 uses cmpxchg16b.
        .args(["-machine", "q35,accel=tcg", "-cpu", "max,-cx16"])
        .args(["-smp", "2", "-m", "1024", "-nic", "none", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-monitor", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends the machine.
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    command
}

/// The machine's file system: busybox, the modules, the tests and the script that runs them.
struct Initramfs {
    /// Where `root` and the archive are.
    folder: PathBuf,
    root: PathBuf,
}

impl Initramfs {
    fn new(folder: PathBuf, files: &Files) -> Result<Self> {
        let root = folder.join("root");
        let _ = fs::remove_dir_all(&root);
        let it = Self { folder, root };
        for mount_point in ["dev", "proc", "run", "sys", "tmp"] {
            it.make(mount_point)?;
        }
        copy(busybox()?, &it.make("bin")?.join("busybox"))?;
        let modules = it.make("modules")?;
        for (number, module) in files.modules.iter().enumerate() {
            let name = module.file_name().context("a module's name")?;
            // `init.sh` loads them in the order of their names.
            copy(
                module,
                &modules.join(format!("{number:02}-{}", name.display())),
            )?;
        }
        let init = it.root.join("init");
        fs::write(&init, include_str!("kernels/init.sh"))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        Ok(it)
    }

    fn add_tests(&self, tests: &Tests, binaries: &[PathBuf], args: &[String]) -> Result<()> {
        let folder = self.make("tests")?;
        for ((_, name), binary) in tests.binaries.iter().zip(binaries) {
            copy(binary, &folder.join(name))?;
        }
        if let Some((from, to)) = tests.files {
            let to = self.make(to)?;
            for entry in fs::read_dir(workspace().join(from))? {
                let entry = entry?;
                copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        let variables = tests.variables.iter();
        let mut script: String = variables
            .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
            .collect();
        let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
        script.push_str(&format!("set -- {}\n", words.join(" ")));
        let parts = self.make("parts")?;
        for (name, words) in tests.parts.iter().filter(|_| args.is_empty()) {
            fs::write(parts.join(name), words.join(" "))?;
        }
        Ok(fs::write(self.root.join("arguments"), script)?)
    }

    /// Makes the archive that the kernel unpacks.
    fn pack(&self) -> Result<PathBuf> {
        let archive = self.folder.join("initramfs");
        let mut pack = Command::new("sh");
        pack.current_dir(&self.root)
            .args(["-c", "find . | \"$0\" cpio -o -H newc >\"$1\""])
            .args([busybox()?, &archive]);
        run(&mut pack)?;
        Ok(archive)
    }

    fn make(&self, path: &str) -> Result<PathBuf> {
        let path = self.root.join(path);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// `arg` quoted as one word of a shell.
fn quoted(arg: &str) -> String {
    format!("'{}'", arg.replace('\'', r"'\''"))
}

/// Builds the tests as static programs without debug information, which would fill the machine's
/// memory; returns their paths.
fn static_tests(tests: &Tests) -> Result<Vec<PathBuf>> {
    let binaries = tests.binaries.iter();
    binaries
        .map(|(package, test)| static_test(package, test))
        .collect()
}

fn static_test(package: &str, test: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["rustc", "--package", package, "--test", test])
        .arg("--message-format=json-render-diagnostics")
        .args(["--", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static", "-C", "strip=debuginfo"]);
    eprintln!("+ {}", shown(&command));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{}`", shown(&command)))?;
    ensure!(output.status.success(), "`{}` failed", shown(&command));
    executable(&output.stdout, test)?
        .with_context(|| format!("cargo names no executable of the test {test}"))
}

/// The executable of a test in the messages that cargo prints.
fn executable(messages: &[u8], test: &str) -> Result<Option<PathBuf>> {
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.target.name == test
            && let Some(path) = artifact.executable
        {
            return Ok(Some(path.into()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_is_refused_with_all_known_versions() {
        let error = chosen(&["6.1".into(), "2.6".into()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("2.6") && error.contains("5.10"), "{error}");
        assert_eq!(chosen(&["6.1".into()]).unwrap().len(), 1);
        assert_eq!(chosen(&[]).unwrap().len(), KERNELS.len());
    }

    #[test]
    fn a_quoted_argument_stays_one_word() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
