//! Tests that share a running cluster, one cluster at a time.

use anyhow::{Context, Result};
use ipip_lab::kubernetes::{
    Cluster, PodNetwork, ProxyMode, Settings,
    stage::{ROWS, Stage},
};
use libtest_mimic::{Failed, Trial};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long what starts may take until it works.
const PATIENCE: Duration = Duration::from_secs(30);

/// A test of a cluster with our CNI. It leaves the cluster as it found it.
pub type StageTest = fn(&mut Stage) -> Result<()>;

/// The cluster that runs now, and its mode.
#[derive(Clone, Default)]
pub struct Current {
    running: Arc<Mutex<Option<(ProxyMode, Stage)>>>,
}

impl Current {
    /// Removes the cluster that runs now.
    pub fn end(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A trial of each row of the table.
    pub fn rows(&self, proxy: ProxyMode) -> Vec<Trial> {
        ROWS.iter()
            .map(|row| {
                let attempt = row.attempt;
                self.trial(proxy, row.name, move |stage| {
                    let seen = attempt(stage)?;
                    eprintln!("        {seen}");
                    Ok(())
                })
            })
            .collect()
    }

    /// A trial with the cluster of a mode.
    pub fn trial(
        &self,
        proxy: ProxyMode,
        name: &str,
        test: impl Fn(&mut Stage) -> Result<()> + Send + 'static,
    ) -> Trial {
        let current = self.clone();
        let name = format!("{}::{name}", proxy.name());
        Trial::test(name, move || current.run(proxy, test))
    }

    fn run(&self, proxy: ProxyMode, test: impl Fn(&mut Stage) -> Result<()>) -> Result<(), Failed> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_none_or(|(mode, _)| *mode != proxy) {
            // The old one goes first: two would double the load.
            *running = None;
            *running = Some((proxy, start(proxy).map_err(|error| format!("{error:#}"))?));
        }
        let Some((_, stage)) = running.as_mut() else {
            return Err("no cluster".into());
        };
        let began = Instant::now();
        match test(stage) {
            Ok(()) => {
                took_note("the test below", began.elapsed());
                Ok(())
            }
            Err(error) => {
                eprintln!("        {error:#}");
                let report = stage.cluster.report();
                // Whatever state it is in, the next test shall not see it.
                *running = None;
                Err(format!("{error:#}\n{report}").into())
            }
        }
    }
}

fn start(proxy: ProxyMode) -> Result<Stage> {
    let settings = Settings {
        proxy,
        network: PodNetwork::Ipip,
        ..Settings::default()
    };
    let cluster = Cluster::start(settings, &took_note).context("the cluster does not start")?;
    let began = Instant::now();
    let stage = Stage::set(cluster, PATIENCE).context("the pods do not start")?;
    took_note("pods and Services", began.elapsed());
    Ok(stage)
}

/// Says how long something took.
pub fn took_note(what: &str, took: Duration) {
    eprintln!("{:6.1} s  {what}", took.as_secs_f64());
}
