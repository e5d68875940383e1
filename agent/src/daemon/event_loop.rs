//! The agent's life: wakes when nodes or the host change, and makes passes.

use crate::{
    config::Config,
    daemon::{
        drops,
        health::{self, Health},
        lock::{self, Lock},
        watch::Watch,
    },
    nodes::{self, Report, Update},
    reconcile::reconciler::{self, Agent, Pass},
};
use ipip_datapath::{Events as DropEvents, Pins};
use ipip_netlink::{Changes, Events};
use std::{io, os::fd::AsRawFd, path::PathBuf, time::Duration};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

/// The kernel holds an unused neighbour for valid for 30 s or so.
const CONFIRM: Duration = Duration::from_secs(5);
/// Everything is looked at anew this often: what others broke is mended.
const LOOK: Duration = Duration::from_secs(30);
/// One pod at most is promoted from clsact to TCX this often, and what container runtimes need is
/// looked at.
const SECOND: Duration = Duration::from_secs(1);
/// Changes of the host often come in swarms; one pass serves them all.
const SWARM: Duration = Duration::from_millis(10);
/// A failed pass is tried again after this, and later after twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Inventories that may wait to be taken: a source puts what comes meanwhile into the next one.
const UPDATES: usize = 1;

/// Anything may have changed.
const EVERYTHING: Changes = Changes {
    links: true,
    addresses: true,
    routes: true,
    neighbours: true,
    lost: true,
};

/// Why the agent ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent runs.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// It cannot start.
    #[error(transparent)]
    Agent(#[from] reconciler::Error),
    /// The node source is not part of this build.
    #[error(transparent)]
    NodeSource(#[from] nodes::NoKubernetesClient),
    /// The health cannot be served.
    #[error(transparent)]
    Health(#[from] health::Error),
    /// Changes of the host cannot be heard.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// The drop events cannot be heard.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// Nobody tells the nodes any more.
    #[error("the node source has ended: this is a defect of ipip-agent, please report it")]
    SourceEnded,
    /// Signals or descriptors cannot be waited for.
    #[error("cannot wait for events: {0}")]
    Wait(#[from] io::Error),
}

/// Runs until SIGTERM or SIGINT, which leave the datapath working.
pub async fn run(config: Config) -> Result<(), Error> {
    let _lock = Lock::take(&config.state_dir)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let health = Health::new(std::time::Instant::now());
    health.serve(config.health).await?;

    let (sender, mut updates) = mpsc::channel(UPDATES);
    let (report, reported) = watch::channel(Report::default());
    nodes::start(&config, reported, sender)?;
    let pins = Pins::new(&config.pin_root);
    let mut runtimes = Watch::new(folders_for_runtimes(&config));
    // Before the first look: what changes after it is heard.
    let mut host = readable(Events::open()?)?;
    let mut life = Life {
        agent: Agent::start(config)?,
        health,
        pending: EVERYTHING,
        report,
        retry: None,
        patience: FIRST_RETRY,
    };
    host.get_mut().ignore_routes_of(life.agent.port()?);
    let mut drop_events = readable(DropEvents::open(&pins)?)?;
    let mut confirm = every(CONFIRM);
    let mut look = every(LOOK);
    let mut second = every(SECOND);
    loop {
        let retry = life.retry;
        let changes = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            update = updates.recv() => {
                if life.take(update.ok_or(Error::SourceEnded)?) {
                    // Of the host nothing changed that is not pending.
                    life.pass(Changes::default());
                }
                continue;
            }
            ready = host.readable_mut() => {
                tokio::time::sleep(SWARM).await;
                let mut ready = ready?;
                let changes = ready.get_inner_mut().drain()?;
                ready.clear_ready();
                changes
            }
            ready = drop_events.readable_mut() => {
                let mut ready = ready?;
                drops::log(ready.get_inner_mut());
                ready.clear_ready();
                continue;
            }
            _ = confirm.tick() => {
                life.confirm();
                continue;
            }
            _ = second.tick() => {
                life.promote();
                if runtimes.has_changed() {
                    life.pass(Changes::default());
                }
                continue;
            }
            _ = look.tick() => EVERYTHING,
            () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => EVERYTHING,
        };
        if changes.any() {
            life.pass(changes);
        }
    }
    info!("ending; the datapath goes on without the agent");
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
pub async fn until_stopped() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The folders in which this agent keeps files for container runtimes.
fn folders_for_runtimes(config: &Config) -> Vec<PathBuf> {
    let plugins = config.cni_bin_source.as_ref().map(|_| &config.cni_bin_dir);
    let folders = plugins.into_iter().chain(&config.cni_conf_dir);
    folders.cloned().collect()
}

struct Life {
    agent: Agent,
    health: Health,
    /// What changed since the last pass that succeeded.
    pending: Changes,
    report: watch::Sender<Report>,
    /// When a failed pass is tried again.
    retry: Option<Instant>,
    patience: Duration,
}

impl Life {
    /// Takes what the source says; whether that makes a pass due.
    fn take(&mut self, update: Update) -> bool {
        match update {
            Ok(inventory) => {
                self.agent.set_inventory(inventory);
                true
            }
            Err(refusal) => {
                match refusal.waits {
                    true => info!(for = %refusal, "waiting"),
                    false => {
                        error!(%refusal, "the inventory is refused, the last good one goes on")
                    }
                }
                if !self.agent.has_inventory() {
                    self.set_ready(Err(refusal.to_string()));
                }
                false
            }
        }
    }

    fn pass(&mut self, changes: Changes) {
        self.pending = self.pending.and(changes);
        if !self.agent.has_inventory() {
            return;
        }
        let passed = loop {
            match self.agent.pass(self.pending) {
                Ok(Pass::Again) => {}
                passed => break passed,
            }
        };
        match passed {
            Ok(_) => {
                self.pending = Changes::default();
                self.retry = None;
                self.patience = FIRST_RETRY;
                self.set_ready(Ok(()));
            }
            Err(errors) => {
                for error in &errors {
                    error!(%error, again_in = ?self.patience, "not in sync");
                }
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                self.set_ready(Err(texts.join("\n")));
                self.retry = Some(Instant::now() + self.patience);
                self.patience = (2 * self.patience).min(LAST_RETRY);
            }
        }
    }

    fn set_ready(&self, ready: Result<(), String>) {
        self.health.set_ready(ready.clone());
        let report = Report {
            pod_mtu: ready.is_ok().then(|| self.agent.pod_mtu()),
            ready: Some(ready),
            warnings: self.agent.remarks(),
        };
        self.report.send_if_modified(|before| {
            let changed = *before != report;
            *before = report;
            changed
        });
    }

    fn confirm(&mut self) {
        self.health.beat(std::time::Instant::now());
        if let Err(error) = self.agent.confirm_next_hops() {
            warn!(%error, "next hops are not confirmed");
        }
    }

    fn promote(&mut self) {
        if let Err(error) = self.agent.promote(std::time::Instant::now()) {
            warn!(%error, "an interface stays on clsact for now");
        }
    }
}

/// A descriptor that can be waited for.
fn readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both users own one descriptor, opened once and closed when they are dropped.
    let registered = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// A clock whose first tick comes after one period.
fn every(period: Duration) -> tokio::time::Interval {
    let mut clock = interval(period);
    clock.reset();
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}
