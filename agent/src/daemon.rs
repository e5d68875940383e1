//! The running process: its event loop, the lock against a second agent, health endpoints and background work.
//!
//! Code that waits (timers, sockets, signals) lives here and calls `reconcile`, which never waits for events.
//! A metrics endpoint would be one more route beside [`health`], and probes of paths one more source of wakeups.

pub mod event_loop;
pub mod health;
pub mod lock;
pub mod signals;

mod drops;
mod folder_watch;
mod promoter;
pub mod report_file;
pub mod traffic_file;
mod wakeups;
