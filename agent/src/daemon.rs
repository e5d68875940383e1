//! The running process: its event loop, lock, health endpoints and background work.

pub mod event_loop;
pub mod health;
pub mod lock;

mod drops;
pub(crate) mod promoter;
mod watch;
