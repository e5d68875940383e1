//! `cargo xtask test [AREA…]`.

use crate::{
    build, cluster,
    command::{cargo, is_root, listen, output},
    ebpf, image, kernels,
    lint::lint,
    runtimes,
    setup::setup,
    tally::{Reader, Tally},
    tools,
};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use std::{env, io::Write, process::Command, time::Instant};

/// What to test.
#[derive(Args, Debug)]
pub struct Options {
    /// What to run; by default everything but `kernels`, `runtimes`, `api` and `kubernetes`
    areas: Vec<Area>,
    /// Only this one of the area `kernels` (5.10, 6.1, ...); may be given several times
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// For the test binaries: part of a test's name, --nocapture, ...
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Area {
    /// fmt, clippy, rustdoc and cargo-deny
    Lint,
    /// Each crate's own tests
    Unit,
    /// The eBPF programs, packet by packet
    Datapath,
    /// The datapath on Debian's kernels, in emulated machines
    Kernels,
    /// The CNI plugin alone, and the agent that installs it
    Cni,
    /// The CNI plugin under containerd, podman and cnitool
    Runtimes,
    /// Agents, plugin and tools in simulated clouds
    E2e,
    /// The agent, its manifests and our configurations, judged by a real API server and kubeadm
    Api,
    /// A real Kubernetes cluster
    Kubernetes,
}

/// What runs if no area is named. The others need programs of `cargo xtask tools`, which take a quarter
/// of an hour to build once, or kernels of Debian's archive.
const DEFAULT: [Area; 5] = [Area::Lint, Area::Unit, Area::Datapath, Area::Cni, Area::E2e];

/// What the area `api` runs.
const API_PROGRAMS: [&str; 5] = ["etcd", "kube-apiserver", "kubectl", "kubeadm", "helm"];

/// Prepares the machine, builds, runs the areas, and fails if one of them did or nothing ran.
pub fn test(options: &Options) -> Result<()> {
    let areas = match options.areas.as_slice() {
        [] => &DEFAULT,
        some => some,
    };
    let kernels = kernels::chosen(&options.kernels)?;
    ensure!(
        options.kernels.is_empty() || areas.contains(&Area::Kernels),
        "--kernel is of the area `kernels`, which you did not name"
    );
    setup(false)?;
    let mut report = Report::default();
    let built = match areas {
        // Clippy, rustdoc and static tests need the object that the host side embeds, and no binary.
        [Area::Lint] | [Area::Kernels] => ebpf::build(ebpf::Options::default()).map(drop),
        _ => build::for_tests(),
    };
    if let Err(error) = &built {
        println!("the build failed, so no test can run: {error:#}");
        report.build_failed();
    }
    if built.is_ok() && areas.contains(&Area::Api) {
        tools::prepare(&API_PROGRAMS)?;
    }
    if built.is_ok() && areas.contains(&Area::Runtimes) {
        runtimes::prepare()?;
    }
    if built.is_ok() && areas.contains(&Area::Kubernetes) {
        cluster::prepare()?;
    }
    for &area in areas {
        if built.is_err() && area != Area::Lint {
            continue;
        }
        println!("\n== {} ==", area.name());
        let began = Instant::now();
        let (tally, failures) = match area {
            Area::Lint => lint(),
            Area::Kernels => kernels::test(&kernels, &options.args)?,
            _ => tests(area, &options.args)?,
        };
        report.add(area, tally, failures, began.elapsed().as_secs_f64());
    }
    report.print();
    match report.sum {
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

impl Area {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn cargo_test(self) -> Result<Command> {
        let mut command = cargo();
        command.args([
            "test",
            "--no-fail-fast",
            "--workspace",
            "--exclude",
            "ipip-ebpf",
        ]);
        match self {
            Self::Unit => command.args(["--exclude", "ipip-tests"]),
            // Selected by target and not by `-p`: then features, and with them builds, are those
            // of the whole workspace.
            Self::Datapath => command.args(["--test", "programs"]),
            _ => command.args(["--test", &self.name()]),
        };
        if matches!(self, Self::Runtimes | Self::Api | Self::Kubernetes) {
            // sudo may give root another home.
            command.env(tools::VARIABLE, tools::root()?);
            command.env(image::VARIABLE, image::folder()?);
        }
        // Each end-to-end test runs several nodes and times losses.
        if self == Self::E2e && env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", "1");
        }
        Ok(command)
    }
}

/// Runs the tests of an area, showing and counting what they print.
fn tests(area: Area, args: &[String]) -> Result<(Tally, Vec<String>)> {
    let mut command = area.cargo_test()?;
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    if !is_root() {
        println!("not root: the test binaries run through sudo");
        command.env(runner_variable()?, "sudo --preserve-env");
    }
    let mut reader = Reader::default();
    let mut stdout = std::io::stdout();
    let status = listen(&mut command, |line| {
        reader.line(line);
        writeln!(stdout, "{line}")
    })?;
    let failed = !status.success();
    Ok(reader.finish(failed.then_some("cargo test failed before the tests")))
}

/// The variable by which cargo takes a wrapper for test binaries.
fn runner_variable() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV")).context("cannot run rustc")?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc names no host")?;
    let host = host.to_uppercase().replace('-', "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failures: Vec<String>,
    sum: Tally,
}

impl Report {
    fn add(&mut self, area: Area, tally: Tally, failures: Vec<String>, seconds: f64) {
        let name = area.name();
        let line = format!("{name:<10} {seconds:7.1} s   {tally}");
        println!("{line}");
        self.lines.push(line);
        let named = failures.into_iter().map(|what| format!("{name}: {what}"));
        self.failures.extend(named);
        self.sum += tally;
    }

    fn build_failed(&mut self) {
        self.failures.push("build".into());
        self.sum.failed += 1;
    }

    fn print(&self) {
        println!("\n== what ran ==");
        self.lines.iter().for_each(|line| println!("{line}"));
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{}", self.sum);
    }
}
