//! Shows on a real Kubernetes cluster in three simulated clouds what works across them: first with a
//! network that each node has for itself, then with this project, which one `kubectl apply` installs.

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use ipip_lab::kubernetes::{
    Cluster, PodNetwork, Settings,
    scenarios::{SCENARIOS, Workloads},
};
use ipip_testkit::trash::empty_all_on_interrupt;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// Columns of the table: what a terminal of today has.
const TABLE_WIDTH: u16 = 140;
/// How long what starts may take until it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// What became of a row.
type Outcome = Result<String>;

fn main() -> ExitCode {
    match demo() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every row failed without us and works with us.
fn demo() -> Result<bool> {
    empty_all_on_interrupt()?;
    let began = Instant::now();
    println!("a cluster of four nodes in three clouds; each node has a pod network for itself");
    // Nothing will begin to work by waiting.
    let without = outcomes(PodNetwork::Bridge, Duration::ZERO).context("without ipip")?;
    println!("\nthe same cluster, after `kubectl apply -k manifests/`");
    let with = outcomes(PodNetwork::Ipip, PATIENCE).context("with ipip")?;
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_WIDTH)
        .set_header(["what", "by hand until now", "without", "with ipip", "seen"]);
    let mut as_expected = true;
    for ((row, without), with) in SCENARIOS.iter().zip(&without).zip(&with) {
        // Without us the port is as open, or closed, as its firewall says.
        as_expected &= with.is_ok() && (without.is_err() || row.holds_without);
        let seen = match with {
            Ok(seen) => seen.clone(),
            Err(error) => format!("{error:#}"),
        };
        let word = |outcome: &Outcome| if outcome.is_ok() { "works" } else { "fails" };
        table.add_row([row.what, row.by_hand, word(without), word(with), &seen]);
    }
    println!("\n{table}\n{:.1} s", began.elapsed().as_secs_f64());
    Ok(as_expected)
}

/// Starts a cluster, tries each row on it, and removes it.
fn outcomes(network: PodNetwork, patience: Duration) -> Result<Vec<Outcome>> {
    let settings = Settings {
        network,
        ..Settings::default()
    };
    let cluster = Cluster::start(settings, &|what, took| {
        println!("{:6.1} s  {what}", took.as_secs_f64());
    })?;
    let began = Instant::now();
    let workloads = Workloads::start(cluster, patience)?;
    println!("{:6.1} s  pods and Services", began.elapsed().as_secs_f64());
    let attempts = SCENARIOS.iter().map(|row| {
        let began = Instant::now();
        let outcome = (row.attempt)(&workloads);
        let mark = if outcome.is_ok() { "✓" } else { "✗" };
        let took = began.elapsed().as_secs_f64();
        println!("{took:6.1} s  {mark} {}", row.what);
        outcome
    });
    Ok(attempts.collect())
}
