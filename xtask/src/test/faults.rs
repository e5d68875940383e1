//! The check of the hostile-packet campaign: it must find each fault that is put into the programs.

use super::targets::{cargo_test, named, with_privileges};
use crate::{
    command::{run, target_dir, workspace},
    ebpf,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The faults.
const FAULTS: &str = include_str!("../../../datapath/tests/hostile/faults.txt");
/// The object whose programs the campaign tests.
const OBJECT: &str = "IPIP_HOSTILE_OBJECT";

/// The tests that are the campaign.
const TESTS: &str = "every_";
/// What they print about a packet that is not treated as the model says: the counters that moved, or a flow.
const FINDINGS: [&str; 2] = ["moved [", "what the maps keep"];

/// A fault in the programs.
#[derive(Debug)]
struct Fault<'a> {
    name: &'a str,
    file: &'a str,
    right: String,
    wrong: String,
}

/// Builds the programs with each fault, and runs the campaign with them.
pub fn check() -> Result<()> {
    let faults = faults(FAULTS)?;
    let object = ebpf::build(ebpf::Options::default())?;
    let tree = copy_of_the_workspace()?;
    ensure!(passes(&object)?, "the campaign fails without a fault");
    let mut missed = Vec::new();
    for (number, fault) in faults.iter().enumerate() {
        println!("fault {} of {}: {}", number + 1, faults.len(), fault.name);
        let path = tree.join(fault.file);
        let right = fs::read_to_string(&path)?;
        fs::write(&path, fault.put_into(&right)?)?;
        let built = ebpf::build_faulty(&tree);
        fs::write(&path, right)?;
        if passes(&built.with_context(|| format!("fault: {}", fault.name))?)? {
            println!("not found");
            missed.push(fault.name);
        }
    }
    ensure!(missed.is_empty(), "not found: {missed:#?}");
    println!("each of {} faults was found", faults.len());
    Ok(())
}

/// Whether the campaign finds nothing in the programs of `object`.
fn passes(object: &Path) -> Result<bool> {
    let mut command = cargo_test(named(["hostile".into()]));
    command
        .arg(TESTS)
        .env(OBJECT, object)
        .env("RUST_BACKTRACE", "0");
    with_privileges(&mut command)?;
    let output = command.output().context("cannot run the campaign")?;
    let shown = String::from_utf8_lossy(&output.stdout);
    // A program that the kernel refuses proves nothing.
    ensure!(
        output.status.success() || FINDINGS.iter().any(|it| shown.contains(it)),
        "the campaign did not run:\n{shown}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.status.success())
}

/// The sources below the target folder, where each fault is put into them.
fn copy_of_the_workspace() -> Result<PathBuf> {
    let tree = target_dir()?.join("faults/tree");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree)?;
    let mut pack = Command::new("sh");
    pack.current_dir(workspace()).args([
        "-c",
        "git ls-files -z --cached --others --exclude-standard | tar --null -T - -c | tar -x -C \"$0\"",
    ]);
    run(pack.arg(&tree))?;
    Ok(tree)
}

impl Fault<'_> {
    fn put_into(&self, source: &str) -> Result<String> {
        ensure!(
            source.matches(&self.right).count() == 1,
            "{} does not have the text of the fault `{}` once; remedy: follow the change of the program in \
             datapath/tests/hostile/faults.txt",
            self.file,
            self.name
        );
        Ok(source.replace(&self.right, &self.wrong))
    }
}

fn faults(text: &str) -> Result<Vec<Fault<'_>>> {
    let mut faults = Vec::new();
    for block in text.split("\n\n").filter(|it| !it.starts_with('#')) {
        let mut lines = block.trim_end().lines();
        let mut field = |name| {
            let line = lines.next().and_then(|it| it.strip_prefix(name));
            line.with_context(|| format!("{block:?} has no line `{name}`"))
        };
        let (name, file) = (field("fault ")?, field("file ")?);
        let body = lines.collect::<Vec<_>>().join("\n");
        let Some((right, wrong)) = body.split_once("\n=>\n") else {
            bail!("the fault `{name}` has no line `=>`");
        };
        faults.push(Fault {
            name,
            file,
            right: right.to_owned(),
            wrong: wrong.to_owned(),
        });
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_place_in_the_programs() {
        let faults = faults(FAULTS).unwrap();
        assert!(faults.len() >= 20);
        for fault in faults {
            let source = fs::read_to_string(workspace().join(fault.file)).unwrap();
            assert_ne!(fault.put_into(&source).unwrap(), source, "{}", fault.name);
        }
    }
}
