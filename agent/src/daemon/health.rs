//! The health endpoints: `/livez` and `/readyz` answer 200, or 503 with the reason.

use axum::{Router, http::StatusCode, routing::get};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// The agent counts as stuck after this time without a heartbeat. An idle event loop beats far more often.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// The agent's health. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ready: Result<(), String>,
    last_beat: Instant,
}

/// The endpoints cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "health: cannot listen on {address}: {source}; remedy: set `health` to a free address; another agent may be running here"
)]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

impl Health {
    /// An agent that started at `now` and is not ready yet.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            ready: Err("starting".into()),
            last_beat: now,
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

    /// Serves the endpoints from a background task.
    pub async fn serve(&self, address: SocketAddr) -> Result<(), Error> {
        let at = |source| Error { address, source };
        let listener = TcpListener::bind(address).await.map_err(at)?;
        let (live, ready) = (self.clone(), self.clone());
        let router = Router::new()
            .route(
                "/livez",
                get(async move || answer(live.live(Instant::now()))),
            )
            .route("/readyz", get(async move || answer(ready.ready())));
        // The task ends with the runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(())
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
