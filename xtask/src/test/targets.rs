//! Runs test binaries, which it selects by target.

use super::areas::{Targets, Tests, WITH_AREAS};
use crate::{
    build::TESTED_CRATES,
    command::{cargo, is_root, listen, output, workspace},
    ebpf, image,
    tally::{Reader, Tally},
    tools,
};
use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, TargetKind};
use std::{io::Write, process::Command};

/// Integration tests, as (package, test).
type Integration = Vec<(String, String)>;

/// Runs tests; prints and counts their results. `args` are for the test binaries.
pub fn run(tests: &Tests, args: &[String]) -> Result<(Tally, Vec<String>)> {
    let selections = selections(tests.targets)?;
    let mut reader = Reader::default();
    let mut failed = false;
    let mut commands: Vec<Command> = selections.into_iter().map(cargo_test).collect();
    // Arguments select other tests, so this one does not run.
    if tests.other_outer_ttl && args.is_empty() {
        commands.push(with_other_outer_ttl()?);
    }
    for mut command in commands {
        command
            .args(tests.filter)
            .args(args)
            .envs(tests.variables.iter().copied());
        with_privileges(&mut command)?;
        let mut stdout = std::io::stdout();
        let status = listen(&mut command, |line| {
            reader.line(line);
            writeln!(stdout, "{line}")
        })?;
        failed |= !status.success();
    }
    Ok(reader.finish(failed.then_some("cargo test failed before the tests")))
}

/// `cargo test` of a selection, up to the arguments for the test binaries.
pub fn cargo_test(selection: Vec<String>) -> Command {
    let mut command = cargo();
    // Selection by target instead of `--package` keeps the features of the whole workspace, so that nothing is
    // built again.
    command
        .args(["test", "--no-fail-fast"])
        .args(TESTED_CRATES)
        .args(selection)
        .arg("--");
    command
}

/// The datapath test that proves that the programs and user space follow the same constant, with both
/// sides built with another value.
fn with_other_outer_ttl() -> Result<Command> {
    let object = ebpf::build(ebpf::Options {
        other_outer_ttl: true,
        ..ebpf::Options::default()
    })?;
    let selection = [
        "--test",
        "programs",
        "--features",
        "ipip-datapath/other-outer-ttl",
    ];
    let mut command = cargo_test(selection.map(String::from).into());
    command.arg("outer_ttl").env(ebpf::VARIABLE, object);
    Ok(command)
}

/// Test binaries run as root, with the folders of this user's tools and images.
pub fn with_privileges(command: &mut Command) -> Result<()> {
    command.env(tools::VARIABLE, tools::root()?);
    command.env(image::VARIABLE, image::folder()?);
    if !is_root() {
        println!("not root: the test binaries run through sudo");
        command.env(runner_variable()?, "sudo --preserve-env");
    }
    Ok(())
}

/// The arguments by which `cargo test` selects targets, for each call of it.
fn selections(targets: Targets) -> Result<Vec<Vec<String>>> {
    Ok(match targets {
        Targets::Named(name) => vec![named([name.into()])],
        Targets::Package(package) => vec![named(of_packages(&all()?, |it| it == package))],
        Targets::Unit => {
            let mut units = vec!["--lib".into(), "--bins".into()];
            let others = of_packages(&all()?, |it| !WITH_AREAS.contains(&it));
            units.extend(named(others));
            // cargo does not accept `--doc` with another selection.
            vec![units, vec!["--doc".into()]]
        }
    })
}

/// The arguments that select these integration tests.
pub fn named(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let options = names.into_iter().flat_map(|name| ["--test".into(), name]);
    options.collect()
}

fn of_packages(all: &Integration, is_chosen: impl Fn(&str) -> bool) -> Vec<String> {
    all.iter()
        .filter(|(package, _)| is_chosen(package))
        .map(|(_, test)| test.clone())
        .collect()
}

/// Every integration test of the workspace.
fn all() -> Result<Integration> {
    let metadata = MetadataCommand::new()
        .current_dir(workspace())
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    let tests = metadata.packages.iter().flat_map(|package| {
        let targets = package.targets.iter();
        targets
            .filter(|target| target.kind.contains(&TargetKind::Test))
            .map(|target| (package.name.to_string(), target.name.clone()))
    });
    Ok(tests.collect())
}

/// The variable that names a wrapper for test binaries to cargo.
fn runner_variable() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV")).context("cannot run rustc")?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` prints no host")?;
    let host = host.to_uppercase().replace('-', "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::areas::{AREAS, Runs},
        *,
    };
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn no_two_integration_tests_have_the_same_name_so_that_a_name_selects_one() {
        let mut packages: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (package, test) in all().unwrap() {
            packages.entry(test).or_default().push(package);
        }
        packages.retain(|_, packages| packages.len() > 1);
        assert_eq!(packages, BTreeMap::new());
    }

    #[test]
    fn each_integration_test_is_in_an_area() {
        let mut selected = BTreeSet::new();
        for area in AREAS {
            if let Runs::Tests(tests) = &area.runs {
                selected.extend(selections(tests.targets).unwrap().concat());
            }
        }
        for (package, test) in all().unwrap() {
            assert!(selected.contains(&test), "{test} of {package}");
        }
    }
}
