//! From inventory and facts to maps and routes: `desired` and `plan` are pure, `apply` writes.

pub mod apply;
pub mod desired;
pub mod peer_ids;
pub mod plan;
pub mod reconciler;
