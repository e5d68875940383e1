//! The health endpoints: `/livez` and `/readyz` answer 200, or 503 with the reason.

use axum::{Router, http::StatusCode, routing::get};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, time::sleep};
use tracing::{info, warn};

/// The agent counts as stuck after this time without a heartbeat. An idle event loop beats far more often.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// Time after which a port that another process has is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The agent's health. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ready: Result<(), String>,
    last_beat: Instant,
    /// Why the endpoints are not served.
    not_served: Option<String>,
}

impl Health {
    /// An agent that started at `now` and is not ready yet.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            ready: Err("starting".into()),
            last_beat: now,
            not_served: None,
        })))
    }

    /// Records a heartbeat of the event loop.
    pub fn beat(&self, now: Instant) {
        self.state().last_beat = now;
    }

    /// Sets whether programs are attached and maps are in sync, or the reason why not.
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.state().ready = ready;
    }

    /// Serves the endpoints until the runtime ends. While another process has the port, it tries again: a pod in the host's
    /// network could take it, and must not be able to stop the agent.
    pub async fn serve(self, address: SocketAddr) {
        let (live, ready) = (self.clone(), self.clone());
        let router = Router::new()
            .route(
                "/livez",
                get(async move || answer(live.live(Instant::now()))),
            )
            .route("/readyz", get(async move || answer(ready.ready())));
        loop {
            let served = match TcpListener::bind(address).await {
                Ok(listener) => {
                    if self.state().not_served.take().is_some() {
                        info!(%address, "health endpoints are served");
                    }
                    axum::serve(listener, router.clone()).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                let why = format!(
                    "health: cannot listen on {address}, so probes fail: {error}; remedy: find the process that has the port (ss -ltnp), or set `health` to another address"
                );
                if self.state().not_served.replace(why.clone()).is_none() {
                    warn!("{why}");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Why the endpoints are not served, if they are not.
    pub fn not_served(&self) -> Option<String> {
        self.state().not_served.clone()
    }

    fn live(&self, now: Instant) -> Result<(), String> {
        let silent = now.saturating_duration_since(self.state().last_beat);
        if silent > MAX_SILENCE {
            let seconds = silent.as_secs();
            return Err(format!("the agent has been stuck for {seconds} s"));
        }
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        self.state().ready.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(health: Result<(), String>) -> (StatusCode, String) {
    match health {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_whose_event_loop_is_silent_for_too_long_is_not_alive() {
        let start = Instant::now();
        let health = Health::new(start);
        assert_eq!(health.live(start + MAX_SILENCE), Ok(()));
        let late = start + MAX_SILENCE + Duration::from_secs(5);
        assert_eq!(
            health.live(late).unwrap_err(),
            "the agent has been stuck for 65 s"
        );
        health.beat(late);
        assert_eq!(health.live(late), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_another_process_has_is_tried_again() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let health = Health::new(Instant::now());
        tokio::spawn(health.clone().serve(address));
        let wait = async |until: fn(&Health) -> bool| {
            while !until(&health) {
                sleep(RETRY).await;
            }
        };
        wait(|it| it.not_served().is_some()).await;
        let why = health.not_served().unwrap();
        assert!(why.contains("cannot listen on 127.0.0.1:") && why.contains("remedy"));
        drop(other);
        wait(|it| it.not_served().is_none()).await;
        std::net::TcpStream::connect(address).unwrap();
    }

    #[test]
    fn an_agent_is_not_ready_until_it_is_set_ready_and_the_answer_has_the_reason() {
        let health = Health::new(Instant::now());
        assert_eq!(answer(health.ready()).0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready(Ok(()));
        assert_eq!(answer(health.ready()), (StatusCode::OK, "ok\n".into()));
        health.set_ready(Err("no inventory".into()));
        assert_eq!(answer(health.ready()).1, "no inventory\n");
    }
}
