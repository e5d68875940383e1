//! What the agent says of itself over HTTP: `/livez` and `/readyz`, 200 or 503 with the reason.

use axum::{Router, http::StatusCode, routing::get};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// The agent wakes far more often than this, also when there is nothing to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's health. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    ready: Result<(), String>,
    beat: Instant,
}

/// Why the health cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "health: cannot listen on {address}: {source}; remedy: set `health` to a free address, perhaps another agent runs here"
)]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

impl Health {
    /// Alive at `now`, and not ready yet.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            ready: Err("starting".into()),
            beat: now,
        })))
    }

    /// The agent's loop runs.
    pub fn beat(&self, now: Instant) {
        self.state().beat = now;
    }

    /// Programs are attached and maps are in sync, or why not.
    pub fn set_ready(&self, ready: Result<(), String>) {
        self.state().ready = ready;
    }

    /// Serves it in the background from now on.
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
        // It ends with the runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(())
    }

    fn live(&self, now: Instant) -> Result<(), String> {
        let silent = now.saturating_duration_since(self.state().beat);
        match silent > PATIENCE {
            true => Err(format!(
                "the agent has been stuck for {} s",
                silent.as_secs()
            )),
            false => Ok(()),
        }
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
    fn an_agent_whose_loop_is_silent_for_too_long_is_not_alive() {
        let born = Instant::now();
        let health = Health::new(born);
        assert_eq!(health.live(born + PATIENCE), Ok(()));
        let late = born + PATIENCE + Duration::from_secs(5);
        assert_eq!(
            health.live(late).unwrap_err(),
            "the agent has been stuck for 65 s"
        );
        health.beat(late);
        assert_eq!(health.live(late), Ok(()));
    }

    #[test]
    fn it_is_not_ready_before_it_says_so_and_tells_why() {
        let health = Health::new(Instant::now());
        assert_eq!(answer(health.ready()).0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready(Ok(()));
        assert_eq!(answer(health.ready()), (StatusCode::OK, "ok\n".into()));
        health.set_ready(Err("no inventory".into()));
        assert_eq!(answer(health.ready()).1, "no inventory\n");
    }
}
