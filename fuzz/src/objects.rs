//! Objects of the Kubernetes API, which the agents of other nodes, other programs and people write.

use crate::inventory::{OWN, expect_consistent};
use ipip_agent::nodes::{
    inventory::Inventory,
    kubernetes::{
        claim::{IpipClaim, compare},
        crd::IpipNode,
        index::Index,
        node_spec,
        pod_block::IpipPodBlock,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{borrow::Cow, collections::BTreeMap, fmt::Debug};

/// The objects of a text.
#[derive(Default)]
struct Objects {
    nodes: BTreeMap<String, IpipNode>,
    claims: BTreeMap<String, IpipClaim>,
    blocks: BTreeMap<String, IpipPodBlock>,
}

/// IpipNodes, IpipPodBlocks, IpipClaims and Nodes as JSON, one in a line.
pub fn objects(text: &str) {
    let mut objects = Objects::default();
    for line in text.lines() {
        objects.read(line);
    }
    let inventory = inventory_of(&objects.index(false));
    // Each agent reads the objects in another order.
    assert_eq!(inventory, inventory_of(&objects.index(true)));
    expect_consistent(&inventory);
    for (name, node) in &objects.nodes {
        let own = objects.claims.iter();
        let own = own.filter(|(_, claim)| claim.spec.node == *name);
        let own = own.map(|(name, claim)| (name.clone(), claim.clone()));
        let own: BTreeMap<_, _> = own.collect();
        let difference = compare(name, &node.spec, &own);
        if let Some((created, _)) = &difference.create {
            assert!(!own.contains_key(created));
        }
        assert!(difference.delete.iter().all(|it| own.contains_key(it)));
    }
}

impl Objects {
    fn read(&mut self, line: &str) {
        if let Some(node) = parsed::<IpipNode>(line) {
            let name = node.metadata.name.clone().unwrap_or_default();
            self.nodes.insert(name, node);
        } else if let Some(block) = parsed::<IpipPodBlock>(line) {
            let name = block.metadata.name.clone().unwrap_or_default();
            self.blocks.insert(name, block);
        } else if let Some(claim) = parsed::<IpipClaim>(line) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            self.claims.insert(name, claim);
        } else if let Ok(node) = serde_json::from_str(line)
            && let Ok(derived) = node_spec::derive(&node, None, None)
        {
            // An agent that derives the same again does not write again.
            let again = node_spec::derive(&node, None, Some(&derived.spec)).unwrap();
            assert_eq!(again.spec, derived.spec);
            for invalid in derived.invalid {
                assert!(!invalid.field.is_empty() && !invalid.remedy.is_empty());
            }
        }
    }

    fn index(&self, is_reversed: bool) -> Index {
        let mut index = Index::default();
        let mut nodes: Vec<_> = self.nodes.values().collect();
        let mut claims: Vec<_> = self.claims.values().collect();
        let mut blocks: Vec<_> = self.blocks.values().collect();
        if is_reversed {
            nodes.reverse();
            claims.reverse();
            blocks.reverse();
        }
        for block in blocks {
            index.apply_block(block);
        }
        for claim in claims {
            index.apply_claim(claim);
        }
        for node in nodes {
            index.apply(node);
        }
        index
    }
}

/// The object in a line. Fails if it changes when it is written and read again.
fn parsed<T: Debug + DeserializeOwned + PartialEq + Serialize>(line: &str) -> Option<T> {
    let object: T = serde_json::from_str(line).ok()?;
    let text = serde_json::to_string(&object).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), object);
    Some(object)
}

fn inventory_of(index: &Index) -> Inventory {
    index.inventory(OWN, |(claim, _)| Some(Cow::Borrowed(claim)), |_| true)
}
