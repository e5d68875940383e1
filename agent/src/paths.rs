//! The paths to a peer: which could be used, what probes have shown of them, and which one is used. Pure.
//!
//! ```text
//! inventory ─► candidates ─┐
//!                          ├─► schedule ─► probes ─► answers ─► history ─► select ─► path
//! activity ────────────────┘                                       ▲          │
//!                                                                  └──────────┘
//! ```
//!
//! [`Paths`](peers::Paths) does this for all peers: it keeps a [`History`](history::History) for each candidate and a
//! [`Selection`](select::Selection) for each peer that has a proven path. Its caller sends the probes and passes the answers.

pub mod candidate;
pub mod history;
pub mod loss;
pub mod minutes;
pub mod mtu;
pub mod peers;
pub mod schedule;
pub mod select;
pub mod uses;
pub mod why;

mod activity;
mod idle;
mod limit;
mod peer;
mod search;

#[cfg(test)]
mod budget;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod pair;
#[cfg(test)]
mod scale;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod stateful;
#[cfg(test)]
mod steadiness;
