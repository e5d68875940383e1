//! The IpipNodes of the cluster, as far as this node needs them.

use super::crd::{IpipNode, IpipNodeSpec};
use crate::nodes::inventory::{
    Claim, InvalidField, InventoryError, Node, Text,
    admission::{Admission, admit},
};
use std::collections::{BTreeMap, HashMap};

/// Seconds since 1970, and the name: the lower one is the older node.
type Age = (i64, String);

/// The nodes that the objects describe. Every other part of an object is forgotten at once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Index {
    nodes: BTreeMap<Age, Result<Node, InvalidField>>,
    births: HashMap<String, i64>,
}

impl Index {
    /// Takes an object in; whether what it says of its node is new.
    pub fn apply(&mut self, object: &IpipNode) -> bool {
        let Some(name) = object.metadata.name.clone() else {
            return false;
        };
        let born = object.metadata.creation_timestamp.as_ref();
        let born = born.map_or(i64::MAX, |time| time.0.as_second());
        let node = parse(&name, &object.spec);
        if let Some(before) = self.births.insert(name.clone(), born)
            && before != born
        {
            // Another object of the same name: its deletion was not heard.
            self.nodes.remove(&(before, name.clone()));
        }
        let changed = self.nodes.get(&(born, name.clone())) != Some(&node);
        self.nodes.insert((born, name), node);
        changed
    }

    /// Forgets the node called `name`; whether it was known.
    pub fn delete(&mut self, name: &str) -> bool {
        let born = self.births.remove(name);
        born.is_some_and(|born| self.nodes.remove(&(born, name.to_owned())).is_some())
    }

    /// The nodes that go together.
    pub fn admission(&self) -> Result<Admission, InventoryError> {
        let readable = self.nodes.values().filter_map(|node| node.as_ref().ok());
        let mut admission = admit(readable)?;
        let refused = self.nodes.iter().filter_map(|((_, name), node)| {
            let problem = node.as_ref().err()?;
            Some((name.clone(), problem.clone()))
        });
        admission.left_out.extend(refused);
        Ok(admission)
    }
}

/// The node, or the first value that cannot be used. The API server validates the form only; the
/// schema has no rule against every range that is never routed.
fn parse(name: &str, spec: &IpipNodeSpec) -> Result<Node, InvalidField> {
    let claim = Claim {
        name: Text::from(name),
        internal_ips: spec.internal_ips.iter().map(Text::from).collect(),
        pod_cidrs: spec.pod_cidrs.iter().map(Text::from).collect(),
        public_endpoint: spec.public_endpoint.as_ref().map(Text::from),
        realm: spec.realm.as_ref().map(Text::from),
        encapsulation: spec.encapsulation.as_ref().map(Text::from),
    };
    let mut invalid = Vec::new();
    let parsed = claim.parse(&mut invalid);
    match invalid.into_iter().next() {
        Some(field) => Err(field),
        None => Ok(parsed.node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, born: &str, ip: &str, cidr: &str) -> IpipNode {
        serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipNode",
            "metadata": {"name": name, "creationTimestamp": born},
            "spec": {"internalIPs": [ip], "podCIDRs": [cidr]},
        }))
        .unwrap()
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-01-02T00:00:00Z";

    fn names(index: &Index) -> Vec<String> {
        let nodes = index.admission().unwrap().inventory.nodes;
        nodes.into_iter().map(|node| node.name).collect()
    }

    #[test]
    fn the_older_object_wins_and_its_deletion_lets_the_younger_in() {
        let mut index = Index::default();
        index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24"));
        index.apply(&object("z", OLD, "10.0.0.1", "10.42.2.0/24"));
        assert_eq!(names(&index), ["z"]);
        assert!(index.admission().unwrap().left_out.contains_key("a"));
        assert!(index.delete("z"));
        assert_eq!(names(&index), ["a"]);
    }

    #[test]
    fn of_two_objects_of_one_second_the_lower_name_wins() {
        let mut index = Index::default();
        index.apply(&object("b", OLD, "10.0.0.1", "10.42.1.0/24"));
        index.apply(&object("a", OLD, "10.0.0.1", "10.42.2.0/24"));
        assert_eq!(names(&index), ["a"]);
    }

    #[test]
    fn an_object_made_anew_is_as_young_as_it_is() {
        let mut index = Index::default();
        index.apply(&object("a", OLD, "10.0.0.1", "10.42.1.0/24"));
        assert!(index.apply(&object("a", NEW, "10.0.0.1", "10.42.1.0/24")));
        index.apply(&object("b", OLD, "10.0.0.1", "10.42.2.0/24"));
        assert_eq!(names(&index), ["b"]);
    }

    #[test]
    fn a_change_of_status_alone_is_no_news() {
        let mut index = Index::default();
        let mut it = object("a", OLD, "10.0.0.1", "10.42.1.0/24");
        assert!(index.apply(&it));
        it.status = Some(Default::default());
        it.metadata.resource_version = Some("7".into());
        assert!(!index.apply(&it));
    }

    #[test]
    fn an_object_that_cannot_be_used_is_left_out_and_the_others_are_not() {
        let mut index = Index::default();
        index.apply(&object("a", OLD, "10.0.0.1", "240.0.0.0/24"));
        index.apply(&object("b", OLD, "10.0.0.2", "10.42.2.0/24"));
        assert_eq!(names(&index), ["b"]);
        let why = index.admission().unwrap().left_out["a"].to_string();
        assert!(why.contains("240.0.0.0/24"), "{why}");
    }
}
