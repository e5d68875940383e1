//! Tools for tests that need root: hosts in network namespaces, traffic between them, captures, filled maps, a
//! node for the CNI plugin, waiting for conditions, a harness, and cleaning up.

pub mod capture;
pub mod cgroups;
pub mod cni_node;
pub mod echo;
pub mod frames;
#[cfg(feature = "harness")]
pub mod harness;
pub mod host;
pub mod http;
pub mod limits;
pub mod links;
pub mod node_maps;
pub mod offloads;
pub mod packet_builder;
pub mod ping;
pub mod scratch;
pub mod sequence;
pub mod shell;
pub mod test_ns;
pub mod trash;
pub mod wait;
