//! The node agent: keeps the datapath's maps, the node's routes and the rest of the host in the desired state.
//!
//! `node source -> inventory -> desired (pure) -> plan = desired - actual (pure) -> apply -> maps, routes`
//!
//! # Folders
//! Each folder uses only folders above it in this table. The files beside `lib.rs`, such as [`problems`] and
//! [`repairs`], use no folder. The test `layers` enforces this.
//!
//! | folder | content | uses |
//! |---|---|---|
//! | [`other_networks`] | what other pod networks leave on a host: recognise and remove it | |
//! | [`paths`] | which path to a peer is used, by what probes have shown; pure | |
//! | [`probe_key`] | the key of this node's probes, and the secrets with other nodes | |
//! | [`config`] | the settings: one table, and the sources that fill it | `other_networks` |
//! | [`nodes`] | the nodes of the cluster: sources, inventory, admission, how two nodes reach each other | `config`, `paths`, `probe_key` |
//! | [`cni_install`] | CNI plugins and configuration for container runtimes | `config`, `other_networks` |
//! | [`host`] | the state that the agent observes on the host, and the settings that it makes there | `nodes`, `other_networks` |
//! | [`reconcile`] | from inventory and facts to maps, routes and host settings | all of the above |
//! | [`daemon`] | the running process: event loop, health, lock, promotion | `reconcile`, `nodes`, `config` |
//! | [`commands`] | `--check`, `prepare`, `uninstall` | all of the above |
//!
//! # Where new features go
//! - **Services and policy.** Each is a folder like [`nodes`]: a source, and an index that is fed plain objects. Its
//!   map entries are fields of [`reconcile::desired::Desired`].
//! - **Metrics.** One more route beside [`daemon::health`], filled from the counters of the maps.

pub mod cni_install;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod host;
pub mod nodes;
pub mod other_networks;
pub mod paths;
pub mod pod_pool;
pub mod probe_key;
pub mod problems;
pub mod reconcile;
pub mod repairs;
pub mod requirements;
pub mod traffic;

mod files;
mod host_programs;
mod log_limit;
mod names;
mod send_if_new;
mod stamp;
mod yaml;
