//! The node agent: keeps the datapath's maps and the node's routes true.
//!
//! `node source -> desired (pure) -> plan = desired - actual (pure) -> one writer -> maps, routes`

pub mod cni_install;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod host;
pub mod nodes;
pub mod reconcile;
pub mod requirements;

mod names;
mod stamp;
mod yaml;
