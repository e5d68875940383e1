//! Runs other programs. If one fails, the error contains its output.

use crate::trash::{Item, Trash};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// Runs a command line, split at white space, and returns its standard output.
pub fn run(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command line")?;
    printed(line, Command::new(program).args(words).output())
}

/// Runs `command` with `input` on its standard input, and returns its standard output.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let line = format!("{command:?}");
    let output = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|mut child| {
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        });
    printed(&line, output).with_context(|| format!("its input was:\n{input}"))
}

/// Returns the standard output of a command that succeeded; otherwise an error with all of its output.
pub fn printed(line: &str, output: std::io::Result<Output>) -> Result<String> {
    let output = output.with_context(|| format!("cannot run `{line}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!(
            "`{line}` failed ({}): {}{}",
            output.status,
            stdout,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout.into_owned())
}

/// Starts a program that runs until the test ends. Its output is appended to the file `log`.
pub fn daemon(command: &mut Command, log: &Path, trash: &Trash) -> Result<Child> {
    let file = OpenOptions::new().create(true).append(true).open(log)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // With a process group of its own, Ctrl-C in a terminal reaches the lab alone.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    trash.add(Item::process(&child));
    Ok(child)
}

/// The path of one of the project's own programs: in `IPIP_BIN_DIR` if it is set, otherwise beside this
/// executable.
pub fn own_program(name: &str) -> Result<PathBuf> {
    program_in(&bin_dir()?, name)
        .context("remedy: build it with `cargo xtask build`, or set IPIP_BIN_DIR")
}

/// The path of a program in `folder`, if it is there.
pub fn program_in(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// The folder that holds the project's own programs.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("IPIP_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("cannot find this executable")?;
    let dir = exe
        .parent()
        .context("this executable has no parent folder")?;
    // Test executables are one folder deeper than programs.
    let dir = match dir.file_name() {
        Some(name) if name == "deps" => dir.parent().unwrap_or(dir),
        _ => dir,
    };
    Ok(dir.to_path_buf())
}
