//! Tests of the datapath on Debian's kernels, booted in QEMU with only the tests. The machine is emulated, so
//! KVM is not needed, and durations have no meaning.

mod console;
mod debian;

use crate::{
    command::{cargo, is_installed, listen, run, shown, target_dir},
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

/// Tests that need a kernel and nothing else, by package.
const TESTS: [(&str, &str); 6] = [
    ("ipip-datapath", "programs"),
    ("ipip-datapath", "attached"),
    ("ipip-datapath", "carried"),
    ("ipip-datapath", "handover"),
    ("ipip-datapath", "pinned"),
    ("ipip-agent", "fou"),
];

/// Upper bound for all tests of one kernel; two minutes are usual on an idle machine.
const TIMEOUT_SECONDS: &str = "1200";

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
pub fn test(kernels: &[Kernel], args: &[String]) -> Result<(Tally, Vec<String>)> {
    ensure!(
        tools::native_arch() == "amd64",
        "the area kernels needs an amd64 machine: its kernels and tests are for that"
    );
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    packages.extend(missing_package());
    setup::packages(&packages)?;
    let tests = static_tests()?;
    let (mut sum, mut failures, mut lines) = (Tally::default(), Vec::new(), Vec::new());
    for kernel in kernels {
        // If one kernel cannot be downloaded or booted, the others are still tested.
        let (tally, failed) = on_kernel(kernel, &tests, args).unwrap_or_else(|error| {
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
fn on_kernel(kernel: &Kernel, tests: &[PathBuf], args: &[String]) -> Result<(Tally, Vec<String>)> {
    let files = kernel.files()?;
    let folder = target_dir()?.join("kernels").join(kernel.version);
    let initramfs = initramfs(&folder, &files, tests, args)?;
    let mut command = machine(&files.image, &initramfs);
    let mut console = Console::default();
    let mut stdout = std::io::stdout();
    listen(command.stdin(Stdio::null()), |line| {
        match console.line(line) {
            Some(shown) => writeln!(stdout, "{shown}"),
            None => Ok(()),
        }
    })?;
    console.before().iter().for_each(|line| println!("{line}"));
    let names = TESTS.map(|(_, test)| test);
    Ok(console.finish(&names))
}

fn machine(kernel: &Path, initramfs: &Path) -> Command {
    let mut command = Command::new("timeout");
    command
        .args([TIMEOUT_SECONDS, QEMU])
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
fn initramfs(folder: &Path, files: &Files, tests: &[PathBuf], args: &[String]) -> Result<PathBuf> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    let make = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        anyhow::Ok(path)
    };
    for mount_point in ["dev", "proc", "run", "sys", "tmp"] {
        make(mount_point)?;
    }
    copy(busybox()?, &make("bin")?.join("busybox"))?;
    for (number, module) in files.modules.iter().enumerate() {
        let name = module.file_name().context("a module's name")?;
        // `init.sh` loads them in the order of their names.
        let name = format!("{number:02}-{}", name.display());
        copy(module, &make("modules")?.join(name))?;
    }
    for ((_, name), test) in TESTS.iter().zip(tests) {
        copy(test, &make("tests")?.join(name))?;
    }
    let words: Vec<String> = args.iter().map(|arg| quoted(arg)).collect();
    fs::write(
        root.join("arguments"),
        format!("set -- {}\n", words.join(" ")),
    )?;
    let init = root.join("init");
    fs::write(&init, include_str!("kernels/init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

    let archive = folder.join("initramfs");
    let mut pack = Command::new("sh");
    pack.current_dir(&root)
        .args(["-c", "find . | \"$0\" cpio -o -H newc >\"$1\""])
        .args([busybox()?, &archive]);
    run(&mut pack)?;
    Ok(archive)
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
fn static_tests() -> Result<Vec<PathBuf>> {
    TESTS
        .iter()
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
