//! `cargo xtask test [AREA…]`.

mod ahead;
mod areas;
mod checks;
mod faults;
mod fuzz;
mod nightly;
mod report;
mod targets;

use crate::{
    build, ebpf, kernels,
    lint::lint,
    setup::{self, Need},
    tally::Tally,
};
use ahead::Ahead;
use anyhow::{Result, bail, ensure};
use areas::{AREAS, Area, Build, Runs, Tier};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use report::{Outcome, Report};
use std::time::Instant;

/// The tests to run.
#[derive(Args, Debug)]
pub struct Options {
    /// The areas to run; by default lint, unit, datapath, cni and e2e
    #[arg(value_parser = area_names())]
    areas: Vec<&'static Area>,
    /// Also run kernels, api, runtimes, kubernetes and hosts: the gate for each change
    #[arg(long, conflicts_with = "areas")]
    all: bool,
    /// Run the areas that take too long for each change; .ci/nightly.txt gets the commit of those that
    /// pass
    #[arg(long, conflicts_with_all = ["areas", "all"])]
    nightly: bool,
    /// For the areas `kernels`, `kernels-packets` and `hostile-kernels`: only this kernel (5.10, 6.1, ...); may be given several times
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// For the test binaries: part of a test's name, --nocapture, ...
    #[arg(last = true)]
    args: Vec<String>,
}

/// Minutes that preparing the machine and the build of the workspace may take, as [`Area::budget`].
const BUILD_BUDGET: u32 = 4;

/// Prepares the machine, builds, runs the areas, and fails if one of them failed or nothing ran.
pub fn test(options: &Options) -> Result<()> {
    let areas = options.chosen();
    let kernels = kernels::chosen(&options.kernels)?;
    ensure!(
        options.kernels.is_empty()
            || areas
                .iter()
                .any(|area| matches!(area.runs, Runs::Kernels(_))),
        "--kernel is for the areas `kernels`, `kernels-packets` and `hostile-kernels`, which this call does not run; \
         remedy: cargo xtask test kernels --kernel {}",
        options.kernels.join(" --kernel ")
    );
    let mut report = Report::default();
    let began = Instant::now();
    let prepared = prepare(&areas);
    report.preparation(began.elapsed(), BUILD_BUDGET, prepared.as_ref().err());
    let ahead = prepared.as_ref().ok().and_then(|()| Ahead::start(&areas));
    for area in &areas {
        // The checks of the sources need no build, and help to find why the build fails.
        if prepared.is_err() && !matches!(area.runs, Runs::Lint) {
            report.not_run(area);
            continue;
        }
        println!("\n== {} ==", area.name);
        let began = Instant::now();
        let outcome = (area.prepare)()
            .and_then(|()| run(area, &kernels, &options.args))
            .unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
        report.add(area, outcome, began.elapsed());
    }
    drop(ahead);
    for area in AREAS {
        if !areas.iter().any(|chosen| chosen.name == area.name) {
            report.not_run(area);
        }
    }
    // A part of an area proves less than the area.
    if options.args.is_empty() {
        nightly::record(report.passed())?;
    }
    report.print();
    match report.sum() {
        Tally {
            failed: 0,
            passed: 0,
            ..
        } => bail!("nothing ran"),
        Tally { failed: 0, .. } => Ok(()),
        // The last line has said it already.
        _ => std::process::exit(1),
    }
}

impl Options {
    fn chosen(&self) -> Vec<&'static Area> {
        if !self.areas.is_empty() {
            return self.areas.clone();
        }
        let is_chosen = |area: &&Area| {
            if self.nightly {
                area.tier == Tier::Nightly
            } else if self.all {
                area.is_in_gate()
            } else {
                area.tier == Tier::Default
            }
        };
        AREAS.iter().filter(is_chosen).collect()
    }
}

fn area_names() -> impl TypedValueParser<Value = &'static Area> {
    let names = AREAS
        .iter()
        .map(|area| PossibleValue::new(area.name).help(area.about));
    PossibleValuesParser::new(names)
        .try_map(|name| Area::find(&name).ok_or("no area has this name"))
}

/// Installs and builds the programs that several of the areas need.
fn prepare(areas: &[&Area]) -> Result<()> {
    match areas.iter().map(|area| area.build).max() {
        None | Some(Build::Nothing) => Ok(()),
        Some(Build::Object) => ebpf::build(ebpf::Options::default()).map(drop),
        Some(Build::Workspace) => {
            setup::require(&[Need::Lab, Need::Bpffs, Need::Tests])?;
            build::for_tests()
        }
    }
}

fn run(area: &Area, kernels: &[kernels::Kernel], args: &[String]) -> Result<Outcome> {
    Ok(match &area.runs {
        Runs::Lint => lint().into(),
        Runs::Kernels(tests) => kernels::test(tests, kernels, args)?.into(),
        Runs::Tests(tests) => targets::run(tests, args)?.into(),
        Runs::Check(check) => {
            check()?;
            Outcome::passed()
        }
    })
}
