//! The running process: its event loop, the lock against a second agent, health endpoints and background work.
//!
//! Code that waits (timers, sockets, signals) lives here and calls `reconcile`, which never waits for events.
//! A metrics endpoint would be one more route beside [`health`].

pub mod boot_file;
pub mod event_loop;
pub mod health;
pub mod lock;
pub mod paths_file;
pub mod paths_socket;
pub mod report_file;
pub mod signals;
pub mod traffic_file;

mod drops;
mod folder_watch;
mod path_prober;
mod promoter;
mod readable;
mod timer;
mod wakeups;
