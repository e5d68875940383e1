//! The Kubernetes API.

pub mod announce;
pub mod api_server;
pub mod resource;
