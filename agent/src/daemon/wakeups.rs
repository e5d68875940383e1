//! The sources of wakeups for the event loop: signals, inventories, host changes and timers.

use crate::{
    daemon::{drops, readable::readable, signals::StopSignals, timer::Timer},
    host::WATCHED_RULES,
    nodes::Update,
};
use ipip_datapath::{Events as DropEvents, Pins};
use ipip_netlink::{Changes, Events as HostEvents, RulesetEvents, if_supported};
use std::{future::pending, io, os::fd::AsRawFd, time::Duration};
use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyMutGuard},
    net::{UnixListener, UnixStream},
    sync::mpsc::Receiver,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::warn;

/// Full resync interval; repairs what other programs changed.
const RESYNC_INTERVAL: Duration = Duration::from_secs(30);
/// Interval at which next hops in use are confirmed. The kernel treats an unused neighbour entry as valid for
/// about 30 s (`base_reachable_time`).
const CONFIRM_INTERVAL: Duration = Duration::from_secs(5);
/// Interval of the checks that no event triggers: promotions, pods that are being added, and the files for container
/// runtimes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Debounce: host events come in bursts; reconcile once per burst.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Debounce of nftables changes: a firewall that reloads makes many transactions, and one that removes our rules
/// whenever they appear must not keep the agent busy.
const RULESET_DEBOUNCE: Duration = Duration::from_millis(500);

const RULESET_CHANGED: Changes = Changes {
    links: false,
    addresses: false,
    routes: false,
    neighbours: false,
    settings: false,
    filters: false,
    ruleset: true,
    lost: false,
    tables: false,
};

/// The next task of the event loop.
#[derive(Debug)]
pub enum Wakeup {
    /// End, because of a signal.
    Stop,
    /// Use an update of the node source.
    Update(Update),
    /// Reconcile the changes of the host.
    HostChanged(Changes),
    /// Reconcile everything.
    Resync,
    /// Confirm the next hops that are in use.
    ConfirmNextHops,
    /// Send probes, and take answers.
    Probe,
    /// Somebody asks for the paths to peers.
    ShowPaths(UnixStream),
    /// Promote an interface, and check pods that are being added and the files for container runtimes.
    Check,
}

/// The agent can no longer wait for events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Host changes cannot be read.
    #[error(transparent)]
    Netlink(#[from] ipip_netlink::Error),
    /// Drop events cannot be read.
    #[error(transparent)]
    Datapath(#[from] ipip_datapath::Error),
    /// The task of the node source has ended.
    #[error("the node source has ended: this is a defect of ipip-agent, please report it")]
    SourceEnded,
    /// The kernel refused to wait for signals or descriptors.
    #[error("cannot wait for events: {0}")]
    Wait(#[from] io::Error),
}

/// The sources of wakeups.
pub struct Wakeups {
    stop: StopSignals,
    updates: Receiver<Update>,
    host: AsyncFd<HostEvents>,
    /// `None` on a kernel without nftables.
    ruleset: Option<AsyncFd<RulesetEvents>>,
    /// Time at which a change of nftables is due.
    ruleset_due: Option<Instant>,
    drops: AsyncFd<DropEvents>,
    /// `None` if it could not be opened.
    paths: Option<UnixListener>,
    resync: Interval,
    confirm: Interval,
    check: Interval,
    probe: Timer,
}

impl Wakeups {
    /// Opens the sources. Call it before the first reconciliation, so that no later host change is missed.
    /// Route changes through the netlink port `own_port` are the agent's own and are ignored. `paths` is the socket on which
    /// somebody may ask for the paths to peers.
    ///
    /// # Errors
    /// A source cannot be opened.
    pub fn open(
        pins: &Pins,
        own_port: u32,
        stop: StopSignals,
        updates: Receiver<Update>,
        paths: Option<UnixListener>,
    ) -> Result<Self, Error> {
        let mut host = HostEvents::open()?;
        host.ignore_routes_of(own_port);
        Ok(Self {
            stop,
            updates,
            host: readable(host)?,
            ruleset: if_supported(RulesetEvents::open(WATCHED_RULES))?
                .map(readable)
                .transpose()?,
            ruleset_due: None,
            drops: readable(DropEvents::open(pins)?)?,
            paths,
            resync: every(RESYNC_INTERVAL),
            confirm: every(CONFIRM_INTERVAL),
            check: every(CHECK_INTERVAL),
            probe: Timer::new()?,
        })
    }

    /// Waits for the next wakeup. If `retry` is set, a full resync is due at that time; if `probe` is set, probes are. Logs drop
    /// events meanwhile.
    ///
    /// # Errors
    /// A source has failed or ended.
    pub async fn next(
        &mut self,
        retry: Option<Instant>,
        probe: Option<Instant>,
    ) -> Result<Wakeup, Error> {
        loop {
            return Ok(tokio::select! {
                () = self.stop.received() => Wakeup::Stop,
                update = self.updates.recv() => Wakeup::Update(update.ok_or(Error::SourceEnded)?),
                ready = self.host.readable_mut() => {
                    sleep(DEBOUNCE).await;
                    let mut ready = ready?;
                    let changes = ready.get_inner_mut().drain()?;
                    ready.clear_ready();
                    Wakeup::HostChanged(changes)
                }
                ready = readable_if_open(&mut self.ruleset) => {
                    let mut ready = ready?;
                    if ready.get_inner_mut().drain()?.any() {
                        self.ruleset_due.get_or_insert(Instant::now() + RULESET_DEBOUNCE);
                    }
                    ready.clear_ready();
                    continue;
                }
                () = at(self.ruleset_due) => {
                    self.ruleset_due = None;
                    Wakeup::HostChanged(RULESET_CHANGED)
                }
                ready = self.drops.readable_mut() => {
                    let mut ready = ready?;
                    drops::log(ready.get_inner_mut());
                    ready.clear_ready();
                    continue;
                }
                _ = self.confirm.tick() => Wakeup::ConfirmNextHops,
                _ = self.check.tick() => Wakeup::Check,
                _ = self.resync.tick() => Wakeup::Resync,
                () = at(retry) => Wakeup::Resync,
                due = self.probe.at(probe) => {
                    due?;
                    Wakeup::Probe
                }
                stream = accept_if_open(&self.paths) => match stream {
                    Ok(stream) => Wakeup::ShowPaths(stream),
                    Err(error) => {
                        warn!(%error, "`ipipctl peers` no longer shows why paths are used");
                        self.paths = None;
                        continue;
                    }
                },
            });
        }
    }
}

/// Waits until `time`; for ever if there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Waits until there are events; for ever if the source does not exist.
async fn readable_if_open<T: AsRawFd>(
    source: &mut Option<AsyncFd<T>>,
) -> io::Result<AsyncFdReadyMutGuard<'_, T>> {
    match source {
        Some(source) => source.readable_mut().await,
        None => pending().await,
    }
}

/// Waits until somebody connects; for ever if there is no socket.
async fn accept_if_open(listener: &Option<UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => pending().await,
    }
}

/// A timer whose first tick comes after one period.
fn every(period: Duration) -> Interval {
    let mut timer = interval(period);
    timer.reset();
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}
