//! The lab: clouds simulated in network namespaces, with real agents and the real CNI plugin.
//!
//! A [`Topology`] describes a lab, [`Lab::start`] builds and starts it, and dropping the [`Lab`] removes every
//! namespace, process, pin and file that it made.

#[cfg(feature = "kubernetes")]
pub mod api_agent;
#[cfg(feature = "kubernetes")]
pub mod api_server;
pub mod bandwidth;
pub mod fabric;
pub mod firewall;
pub mod foreign_machine;
pub mod hints;
pub mod inventory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod narrow;
pub mod peering;
pub mod service;
pub mod topology;
#[cfg(feature = "kubernetes")]
pub mod virtual_machines;

mod lab;
mod node;
mod pod;
mod probe_keys;

pub use lab::Lab;
pub use node::LabNode;
pub use pod::{LabPod, Limits};
pub use topology::Topology;
