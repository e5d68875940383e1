//! One kind of underlay with every setup on it, measured in turns.

use super::{
    endpoint::FIRST_PORT,
    load::{self, Measured},
    metrics::{Case, Metric, Services},
    report::MetricResult,
    setup::{OtherBuild, PodSetup, SetupKind, Variant, kube_proxy},
};
use anyhow::{Context, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How often and how long everything is measured.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Rounds; each round measures every case once on each of its setups.
    pub rounds: usize,
    /// Time before each measurement, for slow start and first route lookups.
    pub warm_up: Duration,
    /// Length of each measurement.
    pub measure: Duration,
}

/// An underlay and the metrics that are measured on it.
#[derive(Clone, Copy, Debug)]
pub struct UplinkProfile {
    /// The suffix of the names of its metrics.
    suffix: &'static str,
    /// MTU of all links between the nodes, in bytes.
    uplink_mtu: u32,
    selection: Selection,
}

/// Which metrics are measured in a profile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Selection {
    /// All metrics.
    All,
    /// All but those in which plain routing has our pods' MTU: 20 bytes of 9000 make no difference.
    Jumbo,
    /// Bulk transfers between nodes after [`PodSetup::segment_packets`]. Not BIG TCP: pods only send larger
    /// packets if the uplinks take them unsegmented.
    Segmented,
}

/// All uplink profiles.
pub const UPLINK_PROFILES: [UplinkProfile; 3] = [
    UplinkProfile {
        suffix: "",
        uplink_mtu: 1500,
        selection: Selection::All,
    },
    UplinkProfile {
        suffix: "_jumbo",
        uplink_mtu: 9000,
        selection: Selection::Jumbo,
    },
    UplinkProfile {
        suffix: "_segmented",
        uplink_mtu: 1500,
        selection: Selection::Segmented,
    },
];

/// Measurements of a round, by the case's name and the setup.
type RoundSamples = BTreeMap<(&'static str, SetupKind), Measured>;

impl UplinkProfile {
    /// Whether its uplinks take packets of more than 1500 bytes.
    pub fn is_jumbo(&self) -> bool {
        self.uplink_mtu > 1500
    }

    /// The name of a metric or a case in this profile.
    pub fn name_of(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// Whether it measures this metric.
    pub fn has(&self, metric: &Metric) -> bool {
        let has_our_mtu = metric.uses(SetupKind::PlainOurMtu);
        match self.selection {
            Selection::All => true,
            Selection::Jumbo => !has_our_mtu,
            Selection::Segmented => {
                let variant = metric.variant();
                metric.case.load.is_bulk()
                    && !metric.case.reverse
                    && !has_our_mtu
                    && variant != Some(Variant::OneNode)
                    && !variant.is_some_and(Variant::is_big_tcp)
            }
        }
    }

    /// Builds the setups, measures `metrics` on them and removes the setups.
    pub fn measure(
        &self,
        metrics: &[Metric],
        other: &OtherBuild,
        schedule: &Schedule,
    ) -> Result<Vec<MetricResult>> {
        let setups = self.build(metrics, other)?;
        let mut results: Vec<MetricResult> = metrics
            .iter()
            .map(|metric| MetricResult::new(*metric, self.name_of(metric.name)))
            .collect();
        // Unloading the rules takes longer than a round, so the cases that need them come last.
        for needs_rules in [false, true] {
            let mut phase: Vec<&mut MetricResult> = results
                .iter_mut()
                .filter(|it| (it.metric.case.services != Services::Absent) == needs_rules)
                .collect();
            if phase.is_empty() {
                continue;
            }
            let metrics: Vec<Metric> = phase.iter().map(|result| result.metric).collect();
            if needs_rules {
                install_rules(&setups, &metrics)?;
            }
            for round in 0..schedule.rounds {
                let samples = self.round(&setups, &metrics, round, schedule)?;
                for result in &mut phase {
                    for (column, kind) in result.columns() {
                        if let Some(measured) = samples.get(&(result.metric.case.name, kind)) {
                            result.push(column, result.metric.quantity.of(measured));
                        }
                    }
                }
            }
            eprintln!();
        }
        Ok(results)
    }

    /// Every setup that a metric needs and the kernel supports.
    fn build(&self, metrics: &[Metric], other: &OtherBuild) -> Result<Vec<PodSetup>> {
        eprintln!(
            "building the setups on an underlay of MTU {}",
            self.uplink_mtu
        );
        let kinds: BTreeSet<SetupKind> = metrics
            .iter()
            .flat_map(|metric| metric.setups)
            .flatten()
            .collect();
        let mut setups = Vec::new();
        for kind in kinds {
            let Some(setup) = PodSetup::build(kind, self.uplink_mtu, other)? else {
                eprintln!("this kernel has no device type ipip: {kind:?} is skipped");
                continue;
            };
            if self.selection == Selection::Segmented {
                setup.segment_packets()?;
            }
            setups.push(setup);
        }
        Ok(setups)
    }

    /// Measures each case once on each setup that a metric compares.
    fn round(
        &self,
        setups: &[PodSetup],
        metrics: &[Metric],
        round: usize,
        schedule: &Schedule,
    ) -> Result<RoundSamples> {
        let mut samples = RoundSamples::new();
        for case in cases(metrics) {
            let is_used = |setup: &&PodSetup| {
                let mut readers = metrics.iter().filter(|metric| metric.case == case);
                readers.any(|metric| metric.uses(setup.kind))
            };
            let used: Vec<&PodSetup> = setups.iter().filter(is_used).collect();
            eprint!(
                "\rround {} of {}: {:<40}",
                round + 1,
                schedule.rounds,
                self.name_of(case.name)
            );
            for turn in 0..used.len() {
                // The first setup changes with the round, so that none always meets a warmer machine.
                let setup = used[(turn + round) % used.len()];
                let measured = load::measure(setup, &case, schedule)
                    .with_context(|| format!("{} over {:?}", case.name, setup.kind))?;
                samples.insert((case.name, setup.kind), measured);
            }
        }
        Ok(samples)
    }
}

/// The cases of these metrics, each once, in the order of the metrics.
fn cases(metrics: &[Metric]) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for metric in metrics {
        if !cases.contains(&metric.case) {
            cases.push(metric.case);
        }
    }
    cases
}

/// Loads kube-proxy's rules on all nodes of the setups that these metrics compare.
fn install_rules(setups: &[PodSetup], metrics: &[Metric]) -> Result<()> {
    eprintln!("loading kube-proxy's rules on every node");
    let flows = metrics.iter().map(|metric| metric.case.flows).max();
    let ports: Vec<u16> = (0..flows.unwrap_or(0)).map(|n| FIRST_PORT + n).collect();
    for setup in setups {
        if metrics.iter().any(|metric| metric.uses(setup.kind)) {
            for node in setup.nodes() {
                kube_proxy::install(node, setup.address(1), &ports)?;
            }
        }
    }
    Ok(())
}
