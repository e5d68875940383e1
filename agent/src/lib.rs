//! The node agent: keeps the datapath's maps and the node's routes true.
//!
//! `node source -> desired (pure) -> plan = desired - actual (pure) -> one writer -> maps, routes`

pub mod config;
pub mod desired;
pub mod encapsulation;
pub mod facts;
pub mod ids;
pub mod inventory;
pub mod plan;
mod yaml;
