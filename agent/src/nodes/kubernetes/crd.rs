//! `IpipNode`: the addresses of a node, published for the other nodes as an object of the Kubernetes API.
//!
//! People set annotations and labels on the Node and never write IpipNodes. `spec` comes from the Node,
//! `status` from the observations of the agent; no field has two writers. Only the probe key is the agent's own.
//!
//! Everything in `spec` can change in place, so the age of this object says nothing about its values. Immutable
//! [`IpipClaim`](super::claim::IpipClaim)s date them: the older claim wins a conflict.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most InternalIPs of an object. A node can have more, such as secondary addresses of a cloud.
pub const MAX_INTERNAL_IPS: usize = 64;
/// The most addresses that an object reports as those of other machines, too.
pub const MAX_LAN_CONFLICTS: usize = 64;
/// The most pod CIDRs of an object.
pub const MAX_POD_CIDRS: usize = 16;

/// The addresses of a node and its encapsulation, as derived from its Node.
#[derive(Clone, CustomResource, Debug, Deserialize, Eq, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "ipip.dev",
    version = "v1alpha1",
    kind = "IpipNode",
    plural = "ipipnodes",
    singular = "ipipnode",
    shortname = "ipn",
    status = "IpipNodeStatus",
    derive = "PartialEq",
    doc = "The addresses of a node, published for the other nodes. Its agent writes this object; set annotations and labels on the Node instead.",
    printcolumn = r#"{"name":"Realm","type":"string","jsonPath":".spec.realm"}"#,
    printcolumn = r#"{"name":"Endpoint","type":"string","jsonPath":".spec.publicEndpoint"}"#,
    printcolumn = r#"{"name":"Pod CIDRs","type":"string","jsonPath":".spec.podCIDRs"}"#,
    printcolumn = r#"{"name":"Encapsulation","type":"string","jsonPath":".spec.encapsulation"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].message","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct IpipNodeSpec {
    /// The node's private IPv4 addresses. The first one is its underlay address inside its realm.
    #[serde(rename = "internalIPs")]
    #[schemars(schema_with = "addresses")]
    pub internal_ips: Vec<String>,
    /// The IPv4 ranges of the node's pods.
    #[serde(rename = "podCIDRs")]
    #[schemars(schema_with = "networks")]
    pub pod_cidrs: Vec<String>,
    /// The IPv4 address at which other realms reach the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "address")]
    pub public_endpoint: Option<String>,
    /// Nodes of one realm reach each other by InternalIP. Nodes without a realm share the unnamed realm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "realm")]
    pub realm: Option<String>,
    /// Encapsulation of paths from and to the node, if it differs from the agents' default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "encapsulation")]
    pub encapsulation: Option<String>,
    /// The node's public key (X25519, in base64), from which other nodes derive the secrets that authenticate probes of paths.
    /// It changes with each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "probe_key")]
    pub probe_key: Option<String>,
}

/// What the node's agent observes.
///
/// Everybody reads it, and only its own agent needs most of it. A status that this version cannot read is therefore an empty
/// one: it must not keep others from reading the object, and with it the whole list.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
#[schemars(description = "What the node's agent observes.")]
pub struct IpipNodeStatus {
    /// `Ready`: whether the node's datapath is in sync and the other nodes use this object, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// The MTU of new pods, in bytes.
    #[serde(default, rename = "podMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "bytes")]
    pub pod_mtu: Option<u32>,
    /// InternalIPs of other nodes that a machine in this node's own network has, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conflicts")]
    pub lan_conflicts: Vec<String>,
    /// The source of the public endpoint on the Node, such as `annotation ipip.dev/public-endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub public_endpoint_from: Option<String>,
    /// The version of the node's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub agent_version: Option<String>,
}

impl Serialize for IpipNodeStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for IpipNodeStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self::deserialize(value).unwrap_or_default())
    }
}

/// The condition `Ready`.
pub fn ready(status: bool, reason: &str, message: &str, since: Time) -> Condition {
    Condition {
        type_: "Ready".into(),
        status: if status { "True" } else { "False" }.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since,
        observed_generation: None,
    }
}

const IPV4: &str = "isIP(self) && ip(self).family() == 4 && ip(self).isUnspecified() == false \
                    && !ip(self).isLoopback() && !ip(self).isLinkLocalUnicast() \
                    && !ip(self).isLinkLocalMulticast()";
const NETWORK: &str = "isCIDR(self) && cidr(self).ip().family() == 4 \
                       && cidr(self) == cidr(self).masked()";

fn address_schema() -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 7,
        "maxLength": 15,
        "x-kubernetes-validations": [{"rule": IPV4, "message": "an IPv4 address that can be routed, like 10.0.0.11"}],
    })
}

/// The schema of an IPv4 address.
pub fn address(_: &mut SchemaGenerator) -> Schema {
    address_schema()
}

/// The schema of a node's InternalIPs.
pub fn addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_INTERNAL_IPS,
        "x-kubernetes-list-type": "atomic",
        "items": address_schema(),
    })
}

fn networks(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_POD_CIDRS,
        "x-kubernetes-list-type": "atomic",
        "items": network_schema(),
    })
}

/// The schema of the pod CIDRs of a claim, which can have none.
pub fn claimed_networks(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_POD_CIDRS,
        "x-kubernetes-list-type": "atomic",
        "items": network_schema(),
    })
}

fn network_schema() -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 9,
        "maxLength": 18,
        "x-kubernetes-validations": [{"rule": NETWORK, "message": "an IPv4 network without host bits, like 10.42.1.0/24"}],
    })
}

/// The schema of an IPv4 network.
pub fn network(_: &mut SchemaGenerator) -> Schema {
    network_schema()
}

/// The schema of a realm.
pub fn realm(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 63,
        "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
    })
}

fn encapsulation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["ipip", "udp", "direct"] })
}

fn probe_key(_: &mut SchemaGenerator) -> Schema {
    // The last character stands for four bits.
    json_schema!({
        "type": "string",
        "minLength": 44,
        "maxLength": 44,
        "pattern": "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$",
    })
}

fn bytes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32" })
}

fn conflicts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_LAN_CONFLICTS,
        "x-kubernetes-list-type": "atomic",
        "items": { "type": "string", "maxLength": 15 },
    })
}

fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64" },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{claim::IpipClaim, pod_block::IpipPodBlock},
        *,
    };
    use kube::CustomResourceExt;
    use std::{fs, path::Path};

    #[test]
    fn a_status_that_cannot_be_read_is_empty_and_the_rest_of_the_object_is_read() {
        let mut object = serde_json::json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipNode",
            "metadata": {"name": "a"},
            "spec": {"internalIPs": ["10.0.0.1"], "podCIDRs": ["10.42.1.0/24"], "newField": 1},
            "status": {"podMTU": 1480, "lanConflicts": ["10.0.0.9"], "newField": {}},
        });
        let read = |object: &serde_json::Value| -> IpipNodeStatus {
            let object: IpipNode = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(object.spec.internal_ips, ["10.0.0.1"]);
            object.status.unwrap()
        };
        let status = read(&object);
        assert_eq!(
            (status.pod_mtu, status.lan_conflicts.len()),
            (Some(1480), 1)
        );
        object["status"]["podMTU"] = "large".into();
        assert_eq!(read(&object), IpipNodeStatus::default());
        let written = serde_json::to_value(&status).unwrap();
        assert_eq!(
            written,
            serde_json::json!({"podMTU": 1480, "lanConflicts": ["10.0.0.9"]})
        );
    }

    /// `UPDATE=1` writes the manifest.
    #[test]
    fn the_manifest_of_the_crds_equals_the_types() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/crd.yaml");
        let texts = [IpipNode::crd(), IpipClaim::crd(), IpipPodBlock::crd()].map(|crd| {
            let value = serde_json::to_value(crd).unwrap();
            serde_saphyr::to_string(&value).unwrap()
        });
        let yaml = texts.join("---\n");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &yaml).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), yaml);
    }
}
