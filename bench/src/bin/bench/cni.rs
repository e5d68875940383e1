//! ADD and DEL of the CNI plugin beside those of the reference plugins, measured in turns in one run.

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use ipip_datapath::{AttachMode, Programs, Promotion};
use ipip_testkit::{
    cni_node::{Call, CniNode, PLUGINS},
    host::Host,
    trash::empty_all_on_interrupt,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// What is measured beside ours.
const REFERENCES: [&str; 2] = ["bridge", "ptp"];

/// Measures ADD + DEL against the reference plugins bridge and ptp.
#[derive(Debug, Args)]
pub struct Options {
    /// ADD + DEL one after another, of each plugin
    #[arg(long, value_name = "N", default_value_t = 100)]
    sequential: usize,
    /// At once, in the second part
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Also write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A plugin and its samples.
struct Contender {
    name: &'static str,
    /// One after another: ADD, DEL, start of the program alone.
    add: Vec<Duration>,
    del: Vec<Duration>,
    start: Vec<Duration>,
    /// ADD + DEL while others do the same.
    parallel: Vec<Duration>,
    /// What only ours does: from clsact to TCX, DEL after it, and ADD by TCX at once.
    promotion: Vec<Duration>,
    del_promoted: Vec<Duration>,
    add_by_tcx: Vec<Duration>,
}

impl Options {
    /// Measures and prints.
    pub fn run(&self) -> Result<()> {
        empty_all_on_interrupt()?;
        ensure!(
            self.sequential > 0 && self.parallel > 0,
            "0 measures nothing: ask for 1 or more"
        );
        let machine = CniNode::ready()?;
        let has_tcx = AttachMode::Auto.is_tcx()?;
        let pods: Vec<Host> = (0..self.parallel)
            .map(|number| machine.pod(&format!("p{number}")))
            .collect::<Result<_>>()?;
        let mut contenders: Vec<Contender> = ["ipip"]
            .into_iter()
            .chain(REFERENCES)
            .map(Contender::new)
            .collect();
        let count = contenders.len();
        for round in 0..self.sequential + 2 {
            for turn in 0..count {
                // Who goes first changes, so that no one always meets the warmer machine.
                let contender = &mut contenders[(turn + round) % count];
                let (add, del) = contender.once(&machine, &pods[0], &format!("s{round}"))?;
                let start = contender.version(&machine)?;
                // The first two warm the caches.
                if round >= 2 {
                    contender.add.push(add);
                    contender.del.push(del);
                    contender.start.push(start);
                }
            }
            let ours = &mut contenders[0];
            if has_tcx && round >= 2 {
                ours.promoted(&machine, &pods[0], &format!("t{round}"))?;
            }
        }
        let rounds = self.sequential.div_ceil(self.parallel);
        for round in 0..rounds {
            for turn in 0..count {
                let contender = &mut contenders[(turn + round) % count];
                let samples = contender.at_once(&machine, &pods, round)?;
                contender.parallel.extend(samples);
            }
        }
        machine.expect_no_trace()?;
        println!("{}", table(&contenders, self));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report(&contenders, self))? + "\n";
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("all samples: {}", path.display());
        }
        Ok(())
    }
}

impl Contender {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            add: Vec::new(),
            del: Vec::new(),
            start: Vec::new(),
            parallel: Vec::new(),
            promotion: Vec::new(),
            del_promoted: Vec::new(),
            add_by_tcx: Vec::new(),
        }
    }

    fn call<'a>(&self, machine: &'a CniNode, verb: &str, id: &str, pod: &Host) -> Call<'a> {
        let mut call = machine.call(verb, id, Some(pod));
        if REFERENCES.contains(&self.name) {
            call.plugin = format!("{PLUGINS}/{}", self.name);
            call.conf["type"] = json!(self.name);
            // As people set them up for pods.
            call.conf["bridge"] = json!("cni0");
            call.conf["isGateway"] = json!(true);
            call.conf["mtu"] = json!(1480);
            // Addresses of its own: bridge keeps its gateway's.
            let second = if self.name == "bridge" { 43 } else { 44 };
            let subnet = format!("10.{second}.0.0/16");
            call.conf["ipam"]["ranges"] = json!([[{"subnet": subnet}]]);
            call.conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
            call.conf["name"] = json!(self.name);
        }
        call
    }

    fn once(&self, machine: &CniNode, pod: &Host, id: &str) -> Result<(Duration, Duration)> {
        let (result, added) = self.timed(&self.call(machine, "ADD", id, pod))?;
        let del = self.call(machine, "DEL", id, pod);
        let (_, deleted) = self.timed(&del.with("prevResult", result))?;
        Ok((added, deleted))
    }

    /// As the agent does it with each pod, some time after its start; and a pod that has TCX at once.
    fn promoted(&mut self, machine: &CniNode, pod: &Host, id: &str) -> Result<()> {
        let (result, _) = self.timed(&self.call(machine, "ADD", id, pod))?;
        let veth = result["interfaces"][0]["name"].as_str();
        let veth = veth.context("no host side")?;
        let (outcome, took) = machine.enter(|| -> Result<_> {
            let mut programs = Programs::open(machine.pins(), AttachMode::Auto)?;
            let began = Instant::now();
            Ok((programs.promote(veth)?, began.elapsed()))
        })??;
        ensure!(outcome == Promotion::Done, "not promoted: {outcome:?}");
        let del = self.call(machine, "DEL", id, pod);
        let (_, deleted) = self.timed(&del.with("prevResult", result))?;
        let add = self.call(machine, "ADD", id, pod);
        let (result, added) = self.timed(&add.with("attach", json!("tcx")))?;
        let del = self.call(machine, "DEL", id, pod);
        self.timed(&del.with("prevResult", result))?;
        self.promotion.push(took);
        self.del_promoted.push(deleted);
        self.add_by_tcx.push(added);
        Ok(())
    }

    /// What a call that succeeds prints, and how long it takes.
    fn timed(&self, call: &Call<'_>) -> Result<(Value, Duration)> {
        let began = Instant::now();
        let outcome = call.run()?;
        let took = began.elapsed();
        Ok((outcome.success().with_context(|| self.name)?, took))
    }

    /// How long the program takes to start and to say which versions it speaks.
    fn version(&self, machine: &CniNode) -> Result<Duration> {
        let mut call = machine.call("VERSION", "", None);
        call.plugin = self.call(machine, "VERSION", "", machine).plugin;
        let began = Instant::now();
        let outcome = call.run()?;
        let took = began.elapsed();
        outcome.success()?;
        Ok(took)
    }

    fn at_once(&self, machine: &CniNode, pods: &[Host], round: usize) -> Result<Vec<Duration>> {
        thread::scope(|scope| {
            let threads: Vec<_> = pods
                .iter()
                .enumerate()
                .map(|(number, pod)| {
                    scope.spawn(move || self.once(machine, pod, &format!("r{round}n{number}")))
                })
                .collect();
            let mut samples = Vec::new();
            for thread in threads {
                let (add, del) = thread.join().map_err(|_| anyhow::anyhow!("a panic"))??;
                samples.push(add + del);
            }
            Ok(samples)
        })
    }

    fn both(&self) -> Vec<Duration> {
        let pairs = self.add.iter().zip(&self.del);
        pairs.map(|(add, del)| *add + *del).collect()
    }

    /// What is reported, by name.
    fn rows(&self, options: &Options) -> [(String, Vec<Duration>); 8] {
        [
            ("start (VERSION)".into(), self.start.clone()),
            ("ADD".into(), self.add.clone()),
            ("DEL".into(), self.del.clone()),
            ("ADD + DEL".into(), self.both()),
            (
                format!("ADD + DEL, {} at once", options.parallel),
                self.parallel.clone(),
            ),
            ("promotion to TCX".into(), self.promotion.clone()),
            ("DEL after promotion".into(), self.del_promoted.clone()),
            ("ADD, attach: tcx".into(), self.add_by_tcx.clone()),
        ]
    }
}

/// Median and 99th percentile.
fn cell(samples: &[Duration]) -> String {
    match samples.is_empty() {
        true => "-".into(),
        false => format!(
            "{:.1} ({:.1})",
            quantile(samples, 0.5),
            quantile(samples, 0.99)
        ),
    }
}

/// The value below which this share of the samples lies.
fn quantile(samples: &[Duration], share: f64) -> f64 {
    let mut sorted: Vec<f64> = samples.iter().map(|it| it.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let index = (share * (sorted.len() - 1) as f64).round() as usize;
    sorted[index]
}

fn table(contenders: &[Contender], options: &Options) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut header = vec!["ms, median (p99)".to_string()];
    header.extend(contenders.iter().map(|it| it.name.to_string()));
    header.extend(REFERENCES.map(|name| format!("ours / {name}")));
    table.set_header(header);
    let columns: Vec<_> = contenders.iter().map(|it| it.rows(options)).collect();
    for (row, (name, ours)) in columns[0].iter().enumerate() {
        let mut cells = vec![name.clone()];
        for column in &columns {
            cells.push(cell(&column[row].1));
        }
        for column in &columns[1..] {
            let theirs = &column[row].1;
            cells.push(match ours.is_empty() || theirs.is_empty() {
                true => "-".into(),
                false => format!("{:.2}", quantile(ours, 0.5) / quantile(theirs, 0.5)),
            });
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn report(contenders: &[Contender], options: &Options) -> Value {
    let of = |contender: &Contender| {
        let measured = contender.rows(options).into_iter();
        let measured = measured.filter(|(_, samples)| !samples.is_empty());
        let rows = measured.map(|(name, samples)| {
            let milliseconds: Vec<f64> = samples.iter().map(|it| it.as_secs_f64() * 1e3).collect();
            let row = json!({
                "median": quantile(&samples, 0.5),
                "p99": quantile(&samples, 0.99),
                "samples": milliseconds,
            });
            (name, row)
        });
        (
            contender.name.to_string(),
            rows.collect::<serde_json::Map<_, _>>().into(),
        )
    };
    let plugins: serde_json::Map<String, Value> = contenders.iter().map(of).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "kernel": kernel.trim(),
        "cpus": thread::available_parallelism().map_or(0, usize::from),
        "sequential": options.sequential,
        "parallel": options.parallel,
        "milliseconds": plugins,
    })
}
