//! The public endpoint of a node whose Node states none: the address that its peers see. Pure.

use super::{
    crd::IpipNode,
    node_spec::{self, Derived},
};
use crate::nodes::public_address::Learned;
use k8s_openapi::api::core::v1::Node;

/// The source of such an endpoint, in the status of the IpipNode.
pub const FROM: &str = "the addresses that peers see (learnedPublicEndpoint: use)";

/// Adds what was `learned` to what is derived from `node`, which comes first. While peers do not agree, what `object` has published
/// of them stays: an agent that starts again knows nothing yet, and peers use an address only while it answers probes.
pub fn add(derived: &mut Derived, node: &Node, object: Option<&IpipNode>, learned: &Learned) {
    if node_spec::states_endpoint(node) {
        return;
    }
    let published = object.filter(|it| {
        let from = it
            .status
            .as_ref()
            .and_then(|it| it.public_endpoint_from.as_deref());
        from == Some(FROM)
    });
    let address = match learned {
        Learned::Agreed { address, .. } => Some(address.to_string()),
        Learned::OfAnother { .. } => None,
        Learned::Nothing | Learned::Different(_) => {
            published.and_then(|it| it.spec.public_endpoint.clone())
        }
    };
    derived.endpoint_from = address.as_ref().map(|_| FROM.into());
    derived.spec.public_endpoint = address;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::{kubernetes::crd::IpipNodeStatus, public_address::Witness};
    use serde_json::json;
    use std::collections::BTreeMap;

    const ADDRESS: &str = "203.0.113.11";

    fn node(annotations: serde_json::Value, external: Option<&str>) -> Node {
        let mut addresses = vec![json!({"type": "InternalIP", "address": "10.0.0.11"})];
        addresses.extend(external.map(|it| json!({"type": "ExternalIP", "address": it})));
        serde_json::from_value(json!({
            "metadata": {"name": "a1", "annotations": annotations},
            "spec": {"podCIDRs": ["10.42.1.0/24"]},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn agreed() -> Learned {
        let by = ["b1", "c1"].map(|it| Witness {
            node: it.into(),
            realm: it.into(),
        });
        Learned::Agreed {
            address: ADDRESS.parse().unwrap(),
            by,
        }
    }

    /// The endpoint and its source, if the IpipNode has this one of this source.
    fn published(
        node: &Node,
        before: Option<(&str, &str)>,
        learned: &Learned,
    ) -> (Option<String>, Option<String>) {
        let mut derived = node_spec::derive(node, None, None).unwrap();
        let object = before.map(|(address, from)| {
            let mut object = IpipNode::new("a1", derived.spec.clone());
            object.spec.public_endpoint = Some(address.into());
            object.status = Some(IpipNodeStatus {
                public_endpoint_from: Some(from.into()),
                ..IpipNodeStatus::default()
            });
            object
        });
        add(&mut derived, node, object.as_ref(), learned);
        (derived.spec.public_endpoint, derived.endpoint_from)
    }

    #[test]
    fn what_peers_agree_on_is_published_with_its_source() {
        let node = node(json!({}), None);
        let expected = (Some(ADDRESS.into()), Some(FROM.into()));
        assert!(FROM.len() <= 256);
        assert_eq!(published(&node, None, &agreed()), expected);
        let former = Some(("203.0.113.99", FROM));
        assert_eq!(published(&node, former, &agreed()), expected);
    }

    #[test]
    fn what_provider_or_annotations_state_comes_first() {
        const STATED: &str = "198.51.100.1";
        for (annotations, external) in [
            (json!({"ipip.dev/public-endpoint": STATED}), None),
            (json!({"k3s.io/external-ip": STATED}), None),
            (json!({}), Some(STATED)),
        ] {
            let node = node(annotations, external);
            let (address, from) = published(&node, Some((ADDRESS, FROM)), &agreed());
            assert_eq!(address.as_deref(), Some(STATED));
            assert_ne!(from.as_deref(), Some(FROM));
        }
        for value in ["none", "not an address"] {
            let node = node(json!({"ipip.dev/public-endpoint": value}), None);
            assert_eq!(published(&node, None, &agreed()).0, None, "{value}");
        }
    }

    #[test]
    fn what_was_learned_stays_published_until_peers_agree_on_another_address() {
        let node = node(json!({}), None);
        let before = Some((ADDRESS, FROM));
        let kept = (Some(ADDRESS.into()), Some(FROM.into()));
        for learned in [Learned::Nothing, Learned::Different(BTreeMap::new())] {
            assert_eq!(published(&node, before, &learned), kept);
            assert_eq!(published(&node, None, &learned), (None, None));
            // An annotation that was removed.
            let of_annotation = Some((ADDRESS, "annotation ipip.dev/public-endpoint"));
            assert_eq!(published(&node, of_annotation, &learned), (None, None));
        }
        let taken = Learned::OfAnother {
            address: ADDRESS.parse().unwrap(),
            node: "a2".into(),
        };
        assert_eq!(published(&node, before, &taken), (None, None));
    }
}
