//! The node agent: keeps the datapath's maps and the node's routes true.
//!
//! `node source -> desired (pure) -> plan = desired - actual (pure) -> one writer -> maps, routes`

pub mod agent;
pub mod check;
pub mod cni;
pub mod config;
pub mod desired;
pub mod facts;
pub mod health;
pub mod inventory;
pub mod masquerade;
pub mod merging;
pub mod plan;
pub mod prepare;
pub mod run;
pub mod source;
pub mod uninstall;
pub mod writer;

pub mod encapsulation;
pub mod forwarding;
pub mod ids;
pub mod ipip0;
pub mod lock;
pub mod underlay;

mod drops;
mod promoter;
mod state;
mod watch;
mod yaml;
