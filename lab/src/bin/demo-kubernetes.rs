//! `cargo xtask demo --kubernetes`: compares a real Kubernetes cluster in three simulated clouds with
//! and without this project. Without it, each node has a bridge as its pod network.

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

/// Columns of the table.
const TABLE_WIDTH: u16 = 140;
/// Upper bound of the wait until pods and Services work.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The result of a row: the measurement, or the reason of the failure.
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

/// Whether every row fails without this project and works with it.
fn demo() -> Result<bool> {
    empty_all_on_interrupt()?;
    let began = Instant::now();
    println!("a cluster of four nodes in three clouds; each node has its own pod network");
    // No retries: a scenario that fails without a pod network keeps failing.
    let without = outcomes(PodNetwork::Bridge, Duration::ZERO).context("without ipip")?;
    println!("\nthe same cluster, after `kubectl apply -k manifests/`");
    let with = outcomes(PodNetwork::Ipip, MAX_WAIT).context("with ipip")?;
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(TABLE_WIDTH)
        .set_header([
            "scenario",
            "workaround today",
            "without ipip",
            "with ipip",
            "measured",
        ]);
    let mut as_expected = true;
    for ((row, without), with) in SCENARIOS.iter().zip(&without).zip(&with) {
        // The firewall alone decides about some ports, which are therefore open without this project.
        as_expected &= with.is_ok() && (without.is_err() || row.holds_without);
        let measured = match with {
            Ok(measured) => measured.clone(),
            Err(error) => format!("{error:#}"),
        };
        let word = |outcome: &Outcome| if outcome.is_ok() { "works" } else { "fails" };
        table.add_row([row.what, row.by_hand, word(without), word(with), &measured]);
    }
    println!("\n{table}\n{:.1} s", began.elapsed().as_secs_f64());
    Ok(as_expected)
}

/// Starts a cluster, tries each row on it, and removes it.
fn outcomes(network: PodNetwork, max_wait: Duration) -> Result<Vec<Outcome>> {
    let settings = Settings {
        network,
        ..Settings::default()
    };
    let cluster = Cluster::start(settings, &|what, took| {
        println!("{:6.1} s  {what}", took.as_secs_f64());
    })?;
    let began = Instant::now();
    let workloads = Workloads::start(cluster, max_wait)?;
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
