//! The host beside the datapath: what the agent observes of it, and what it sets.

pub mod facts;
pub mod forwarding;
pub mod fou;
pub mod ipip0;
pub mod masquerade;
pub mod observe;

mod state;
