//! `IpipPodBlock`: one block of the pool `clusterPodCIDRs`, as an object that says which node has it.
//!
//! The name follows from the range, so that the API server creates each block at most once and no leader is needed.

use super::objects;
use ipnetwork::Ipv4Network;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// A range of pod addresses and the node that has it.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "ipip.dev",
    version = "v1alpha1",
    kind = "IpipPodBlock",
    plural = "ipippodblocks",
    singular = "ipippodblock",
    shortname = "ipb",
    derive = "PartialEq",
    doc = "A block of the setting clusterPodCIDRs, taken by a node. The node's agent writes this object; it is deleted together with the Node.",
    validation = Rule::new("self.metadata.name == self.spec.cidr.replace('.', '-').replace('/', '-')").message("the name of a block follows from its cidr: 10-42-3-0-24 for 10.42.3.0/24"),
    printcolumn = r#"{"name":"CIDR","type":"string","jsonPath":".spec.cidr"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a block is immutable: delete it, and another node can take it")
)]
pub struct IpipPodBlockSpec {
    /// The range.
    #[schemars(schema_with = "super::crd::network")]
    pub cidr: String,
    /// The name of the node that has it.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

/// The name of the block `network`.
pub fn name(network: &Ipv4Network) -> String {
    network.to_string().replace(['.', '/'], "-")
}

/// The block `network` of the Node `node` with this uid. It is deleted together with the Node.
pub fn block(network: &Ipv4Network, node: &str, uid: &str) -> IpipPodBlock {
    let spec = IpipPodBlockSpec {
        cidr: network.to_string(),
        node: node.to_owned(),
    };
    let mut block = IpipPodBlock::new(&name(network), spec);
    block.metadata.owner_references = Some(vec![objects::owner(node, uid)]);
    block
}
