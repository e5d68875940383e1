//! Brings this node from its actual to its desired state.
//!
//! [`reconciler`] does this in one call: it observes the host, computes the desired state, and writes the
//! difference. [`candidates`], [`claims`], [`local_use`], [`desired`], [`path_entry`], [`plan`], [`peer_ids`], [`host_route`],
//! [`sources`] and [`mtu`] are pure: they depend neither on netlink nor on the whole configuration. [`apply`] alone writes maps and routes. The rest of the host is set by
//! `host_setup` and `attachments`.
//!
//! A new map needs a field of [`desired::Desired`], a [`plan::Step`] and its write in [`apply`]. For the rules of a
//! new feature (path selection, Services, policy), add a pure module here and call it from [`desired`].

pub mod apply;
pub mod candidates;
pub mod claims;
pub mod datapath_settings;
pub mod desired;
pub mod host_route;
pub mod local_use;
pub mod mtu;
pub mod path_entry;
pub mod peer_ids;
pub mod plan;
pub mod reconciler;
pub mod sources;

mod attachments;
mod error;
mod foreign_routes;
mod host_setup;
mod probe_maps;
mod rules;

pub use error::Error;
