//! Running other programs: each command line is printed first, and an error names it.

use anyhow::{Context, Result, bail};
use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// The folder for cargo's output.
pub fn target_dir() -> Result<PathBuf> {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).context("CARGO_TARGET_DIR"),
        None => Ok(workspace().join("target")),
    }
}

/// The folder in which cargo keeps the sources of dependencies.
pub fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || env::home_dir().unwrap_or_default().join(".cargo"),
        PathBuf::from,
    )
}

/// The cargo that runs this program, with the workspace as its folder.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// `cargo install` of a program whose speed does not matter: without optimisation it is built in a
/// third of the time.
pub fn quick_install(name: &str, version: &str) -> Command {
    let mut command = cargo();
    command
        .args(["install", name, "--version", version, "--locked"])
        .envs([
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
        ]);
    command
}

/// `program` with `args`, run as root: through sudo unless this process is root.
pub fn as_root(program: &str, args: &[&str]) -> Command {
    let mut command = if is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    };
    command.args(args);
    command
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Prints `command` and runs it; an error if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Prints `command` and runs it; calls `on_line` with each line of its standard output.
pub fn listen(
    command: &mut Command,
    mut on_line: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<ExitStatus> {
    eprintln!("+ {}", shown(command));
    let spawned = command.stdout(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("cannot run `{}`", shown(command)))?;
    let stdout = child.stdout.take().context("a program without output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.with_context(|| format!("reading what `{}` prints", shown(command)))?;
        on_line(&String::from_utf8_lossy(&line))?;
    }
    Ok(child.wait()?)
}

/// Prints `command`, runs it with `input` on its standard input, and returns its standard output.
pub fn filter(command: &mut Command, input: &str) -> Result<String> {
    eprintln!("+ {}", shown(command));
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("cannot run `{}`", shown(command)))?;
    let stdin = child.stdin.take();
    // The output is read only after the whole input was written. Dropping the pipe ends the input.
    let written = stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(command), output.status);
    }
    written.with_context(|| format!("writing to `{}`", shown(command)))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The standard output of `command`, or `None` if it cannot run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `command` as a command line.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    // The path of the toolchain's cargo is long and of no interest.
    let name = match program.file_name() {
        Some(name) if name == "cargo" => name,
        _ => program.as_os_str(),
    };
    let mut line = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

/// Whether a program of this name is in PATH or in Debian's folders for root's programs.
pub fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()])
        .any(|dir: PathBuf| dir.join(program).is_file())
}
