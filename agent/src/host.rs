//! The host apart from the datapath: what the agent observes there, and what it sets.
//!
//! [`observe`] reads links, addresses, routes and neighbours and gives them as [`facts`]. Each other module owns
//! one thing on the host: an idempotent `ensure` or `apply` sets it, and `remove` or `restore` undoes that for
//! `uninstall`. The modules depend on no other folder of the agent, so callers pass plain values. Another host
//! setting is one more module here, and `reconcile::host_setup` calls it.

pub mod facts;
pub mod forwarding;
pub mod fou;
pub mod ipip0;
pub mod masquerade;
pub mod observe;

mod state;
