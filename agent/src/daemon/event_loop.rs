//! The event loop: reconciles when the inventory or the host changes, and reports the result.

use crate::{
    config::{Config, LearnedEndpoint},
    daemon::{
        folder_watch::FolderWatch,
        health::Health,
        lock::{self, Lock},
        path_prober::PathProber,
        paths_socket,
        promoter::Promoter,
        report_file::ReportFile,
        signals::StopSignals,
        traffic_file::TrafficFile,
        wakeups::{self, Wakeup, Wakeups},
    },
    host::pod_pool,
    nodes::{
        self, Report, Update,
        public_address::{self, Learned},
    },
    probe_key::{self, PrivateKey},
    problems::{Problem, Problems, Reason},
    reconcile::{
        self,
        reconciler::{Outcome, Reconciler},
    },
    send_if_new::send_if_new,
};
use ipip_datapath::{Pins, Programs};
use ipip_netlink::Changes;
use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{error, info, warn};

/// Backoff after a failed reconciliation: it doubles with each failure, up to a limit.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Maps and routes are read again after so much time for each peer, which is at each resync of a cluster of up to 500 nodes. They
/// are large, nobody else writes the maps, and the kernel reports changes of routes.
const TABLES_OF_PEER: Duration = Duration::from_millis(60);
/// Length of the channel of inventories. While it is full, a source collects changes for its next inventory.
const UPDATES: usize = 1;

/// The agent cannot start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent runs.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The datapath or netlink cannot be opened.
    #[error(transparent)]
    Start(#[from] reconcile::Error),
    /// The pool of pod addresses cannot be used on this host.
    #[error(transparent)]
    Pool(#[from] pod_pool::Error),
    /// The node source is not part of this build.
    #[error(transparent)]
    NodeSource(#[from] nodes::NoKubernetesClient),
    /// The agent cannot wait for events.
    #[error(transparent)]
    Wakeups(#[from] wakeups::Error),
}

/// Traffic could not be recorded.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    #[error(transparent)]
    Read(#[from] reconcile::Error),
    #[error("stateDir: {0}")]
    Write(#[from] io::Error),
}

/// Runs the agent until SIGTERM or SIGINT. The datapath keeps working after that.
///
/// # Errors
/// The agent cannot start, or can no longer wait for events.
pub async fn run(config: Config) -> Result<(), Error> {
    let _lock = Lock::take(&config.state_dir)?;
    if let Some(pool) = config.pod_pool() {
        pod_pool::check(&pool)?;
    }
    let stop = StopSignals::handle().map_err(wakeups::Error::from)?;
    let health = Health::new(std::time::Instant::now());
    tokio::spawn(health.clone().serve(config.health));

    let (sender, updates) = mpsc::channel(UPDATES);
    let (report, reported) = watch::channel(Report::default());
    let key = probe_key::load_or_create(&config.run_dir)
        .inspect_err(|error| warn!(%error, "paths to other nodes are not probed, because this node has no key"))
        .ok();
    let public = key.as_ref().map(PrivateKey::public);
    nodes::start(&config, public, reported, sender)?;

    let pins = Pins::new(&config.pin_root);
    let paths = paths_socket::open(&config.state_dir)
        .inspect_err(
            |error| warn!(%error, "stateDir: `ipipctl peers` will not show why paths are used"),
        )
        .ok();
    let event_loop = EventLoop::start(config, key, &pins, health, report)?;
    let port = event_loop.reconciler.port()?;
    let wakeups = Wakeups::open(&pins, port, stop, updates, paths)?;
    event_loop.run(wakeups).await?;
    info!("the agent ends; the datapath keeps working");
    Ok(())
}

struct EventLoop {
    reconciler: Reconciler,
    path_prober: PathProber,
    promoter: Promoter,
    /// The files for container runtimes.
    cni_files: FolderWatch,
    health: Health,
    /// Why the health endpoints are not served, as reported last.
    health_not_served: Option<String>,
    learned_endpoint: LearnedEndpoint,
    /// The public address of this node as peers see it, as reported last.
    learned: Learned,
    report: watch::Sender<Report>,
    report_file: ReportFile,
    /// `None` if there is none in this run.
    traffic_file: Option<TrafficFile>,
    problems: Problems,
    /// The errors of the last reconciliation.
    errors: Vec<Problem>,
    /// Why the node source follows no change, if that blocks the node.
    refused: Option<String>,
    /// Changes since the last reconciliation that succeeded.
    pending: Changes,
    /// Time from which a resync also reads maps and routes.
    tables_at: Instant,
    /// Time at which a failed reconciliation is tried again.
    retry: Option<Instant>,
    backoff: Duration,
}

impl EventLoop {
    fn start(
        config: Config,
        key: Option<PrivateKey>,
        pins: &Pins,
        health: Health,
        report: watch::Sender<Report>,
    ) -> Result<Self, reconcile::Error> {
        let cni_files = FolderWatch::new(cni_folders(&config));
        let attach = config.attach;
        let report_file = ReportFile::new(&config.state_dir);
        let traffic_file = TrafficFile::open(&config.state_dir)
            .inspect_err(|error| warn!(%error, "traffic is not recorded"))
            .ok();
        let state_dir = config.state_dir.clone();
        let learned_endpoint = config.learned_public_endpoint;
        let mut reconciler = Reconciler::start(config, key)?;
        let path_prober = PathProber::open(pins, &state_dir)?;
        reconciler.set_uses(path_prober.uses().clone());
        Ok(Self {
            reconciler,
            path_prober,
            promoter: Promoter::new(Programs::open(pins, attach)?),
            cni_files,
            health,
            health_not_served: None,
            learned_endpoint,
            learned: Learned::Nothing,
            report,
            report_file,
            traffic_file,
            problems: Problems::default(),
            errors: Vec::new(),
            refused: None,
            pending: Changes::EVERYTHING,
            tables_at: Instant::now(),
            retry: None,
            backoff: FIRST_RETRY,
        })
    }

    async fn run(mut self, mut wakeups: Wakeups) -> Result<(), wakeups::Error> {
        loop {
            let probe = self.path_prober.wake().map(Instant::from_std);
            match wakeups.next(self.retry, probe).await? {
                Wakeup::Stop => return Ok(()),
                Wakeup::Update(update) => self.take_update(update),
                Wakeup::HostChanged(changes) if changes.any() => self.reconcile(changes),
                Wakeup::HostChanged(_) => {}
                Wakeup::Resync => self.resync(),
                Wakeup::ConfirmNextHops => self.confirm_next_hops(),
                Wakeup::Probe => self.probe(),
                Wakeup::ShowPaths(stream) => {
                    paths_socket::answer(stream, self.path_prober.paths());
                }
                Wakeup::Check => self.check(),
            }
        }
    }

    /// Reconciles with a new inventory. If the source has none, the last valid one stays in use.
    fn take_update(&mut self, update: Update) {
        match update {
            Ok(inventory) => {
                self.refused = None;
                self.reconciler.set_inventory(inventory);
                // Host changes that are not reconciled yet are in `pending`.
                self.reconcile(Changes::default());
            }
            Err(refusal) => {
                if refusal.waits {
                    info!(for = %refusal, "waiting");
                } else {
                    error!(%refusal, "inventory refused; the last valid one stays in use");
                }
                self.refused = refusal.blocks.then_some(refusal.why.clone());
                self.find_problems();
                let waits = self.refused.is_none() && !self.reconciler.has_inventory();
                self.publish(if waits {
                    Err(refusal.to_string())
                } else {
                    self.problems.ready()
                });
            }
        }
    }

    /// Reads again what may have changed without an event.
    fn resync(&mut self) {
        let now = Instant::now();
        let tables = self.tables_at <= now;
        if tables {
            self.tables_at = now + TABLES_OF_PEER * self.reconciler.peers();
        }
        self.reconcile(Changes {
            tables,
            ..Changes::WITHOUT_EVENTS
        });
    }

    fn reconcile(&mut self, changes: Changes) {
        self.pending = self.pending.and(changes);
        if !self.reconciler.has_inventory() {
            return;
        }
        let start = Instant::now();
        let result = loop {
            match self.reconciler.reconcile(self.pending) {
                Ok(Outcome::Again) => {}
                result => break result,
            }
        };
        self.path_prober.reconciled(start.elapsed());
        if let Some(offers) = self.reconciler.new_offers() {
            let own = self.reconciler.own_addresses();
            self.path_prober.set_offers(offers, own);
        }
        match result {
            Ok(_) => {
                self.pending = Changes::default();
                self.retry = None;
                self.backoff = FIRST_RETRY;
                self.set_problems(&[]);
            }
            Err(errors) => {
                self.set_problems(&errors);
                self.retry = Some(Instant::now() + self.backoff);
                self.backoff = (2 * self.backoff).min(LAST_RETRY);
            }
        }
    }

    /// Publishes what the last reconciliation found, and its errors.
    fn set_problems(&mut self, errors: &[reconcile::Error]) {
        let of_error = |error| Problem::new(Reason::NotInSync, error);
        self.errors = errors.iter().map(of_error).collect();
        self.find_problems();
        self.publish(self.problems.ready());
    }

    /// Collects everything that an operator should correct.
    fn find_problems(&mut self) {
        let mut found = self.reconciler.problems();
        found.extend(self.errors.iter().cloned());
        let refused = self.refused.as_ref();
        found.extend(refused.map(|why| Problem::new(Reason::TooManyRights, why)));
        self.health_not_served = self.health.not_served();
        let not_served = self.health_not_served.as_ref();
        found.extend(not_served.map(|why| Problem::new(Reason::HealthNotServed, why)));
        self.learned = self.learn();
        let seen = self.reconciler.seen();
        found.extend(seen.and_then(|(own, inventory)| {
            public_address::problem(&self.learned, own, inventory, self.learned_endpoint)
        }));
        self.problems.set(found, SystemTime::now());
    }

    /// Publishes the readiness to the health endpoints, the node source and the report file.
    fn publish(&mut self, ready: Result<(), String>) {
        self.health.set_ready(ready.clone());
        if let Err(error) = self.report_file.write(&self.problems, ready.is_ok()) {
            warn!(%error, "stateDir: cannot write the report for ipipctl; remedy: make it writable");
        }
        let report = Report {
            pod_mtu: ready.is_ok().then(|| self.reconciler.pod_mtu()),
            ready: Some(ready),
            lan_conflicts: self.reconciler.lan_conflicts(),
            learned_endpoint: self.learned.clone(),
            problems: self.problems.iter().map(|(it, _)| it.clone()).collect(),
        };
        send_if_new(&self.report, report);
    }

    /// The public address of this node as peers see it, if nobody has stated one.
    fn learn(&mut self) -> Learned {
        let is_ignored = self.learned_endpoint == LearnedEndpoint::Ignore;
        let seen = self.reconciler.seen();
        let seen = seen.filter(|(_, it)| !is_ignored && !it.endpoint_is_stated);
        seen.map_or(Learned::Nothing, |(own, inventory)| {
            let now = std::time::Instant::now();
            self.path_prober.views().learned(own, inventory, now)
        })
    }

    fn confirm_next_hops(&mut self) {
        self.health.beat(std::time::Instant::now());
        self.reconciler.confirm_next_hops();
        match self.reconciler.probe_lan(std::time::Instant::now()) {
            Ok(true) => self.reconcile(Changes::default()),
            Ok(false) => {}
            Err(error) => warn!(%error, "cannot look for machines with the address of a node"),
        }
    }

    fn probe(&mut self) {
        let reconciler = &self.reconciler;
        let target = |peer, candidate| reconciler.probe_target(peer, candidate);
        if self.path_prober.run(reconciler.maps(), target) {
            self.reconciler.set_uses(self.path_prober.uses().clone());
            self.reconcile(Changes::default());
        }
    }

    fn check(&mut self) {
        if let Err(error) = self.promoter.promote(std::time::Instant::now()) {
            warn!(%error, "cannot promote an interface to TCX; it stays on clsact");
        }
        let health_changed = self.health.not_served() != self.health_not_served;
        let address_changed = self.learn() != self.learned;
        if health_changed || address_changed || self.cni_files.has_changed() {
            self.reconcile(Changes::default());
        }
        if let Some(changes) = self.reconciler.due() {
            self.reconcile(changes);
        }
        if let Err(error) = self.record_traffic() {
            warn!(%error, "cannot record the traffic of peers; remedy: make stateDir writable");
        }
    }

    /// Records the traffic of each peer if it is time.
    fn record_traffic(&mut self) -> Result<(), RecordError> {
        if let Some(file) = &mut self.traffic_file
            && file.is_due()?
            && let Some((realm, samples)) = self.reconciler.traffic()?
        {
            file.record(realm, samples)?;
        }
        Ok(())
    }
}

/// The folders in which this agent keeps files for container runtimes.
fn cni_folders(config: &Config) -> Vec<PathBuf> {
    let plugins = config.cni_bin_source.as_ref().map(|_| &config.cni_bin_dir);
    let folders = plugins.into_iter().chain(&config.cni_conf_dir);
    folders.cloned().collect()
}
