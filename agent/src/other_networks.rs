//! Other pod networks: what they leave on a host, how the agent recognises it, and how `prepare` removes it.
//!
//! The agent itself only reports: the other network may still run, for example while a cluster migrates node by
//! node. [`table`] says what each network creates; everything else here reads that table.

pub mod clean_up;
pub mod found;
pub mod table;

mod firewall;
mod remove_tree;
