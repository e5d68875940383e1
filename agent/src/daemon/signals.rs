//! The signals that end the agent.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Handles the signals from now on.
    ///
    /// # Errors
    /// The kernel refused the handlers, or there is no tokio runtime.
    pub fn handle() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of the signals.
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until the process is asked to stop.
///
/// # Errors
/// Those of [`StopSignals::handle`].
pub async fn until_stopped() -> io::Result<()> {
    StopSignals::handle()?.received().await;
    Ok(())
}
