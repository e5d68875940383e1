//! Applies the events of the watches to the index and to this node's objects. A list takes effect when it is complete.

use super::{
    super::{
        claim::IpipClaim, crd::IpipNode, index::Index, pod_block::IpipPodBlock, publish::OwnObjects,
    },
    Watches,
};
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, runtime::watcher::Event};
use std::borrow::Cow;
use tokio::time::Instant;

impl Watches {
    /// Applies an event of this Node. Returns whether there may be a new update.
    pub fn apply_node(&mut self, event: Event<Node>) -> bool {
        let node = match event {
            Event::Init => {
                self.partial_own.node = None;
                return false;
            }
            Event::InitApply(node) => {
                self.partial_own.node = Some(node);
                return false;
            }
            Event::InitDone => {
                self.node_listed = true;
                self.partial_own.node.take()
            }
            Event::Apply(node) => Some(node),
            Event::Delete(_) => None,
        };
        self.modify_own(|own| own.node = node.map(stripped))
    }

    /// Applies an event of the IpipNodes. Returns whether there may be a new update.
    pub fn apply_object(&mut self, event: Event<IpipNode>) -> bool {
        let own_name = self.name.clone();
        let is_own = |object: &IpipNode| object.metadata.name.as_ref() == Some(&own_name);
        match event {
            Event::Init => {
                self.partial_index = Index::default();
                self.partial_own.object = None;
                false
            }
            Event::InitApply(object) => {
                self.partial_index.apply(&self.counted(&object));
                if is_own(&object) {
                    self.partial_own.object = Some(object);
                }
                false
            }
            Event::InitDone => {
                let index = std::mem::take(&mut self.partial_index);
                let missing = self.index.missing_nodes(&index);
                let mut changed = self.index.apply_nodes(index) || !self.objects_listed;
                for name in self.index.names() {
                    changed |= !missing.contains(&name) && self.deletions.take_back(&name);
                }
                missing.into_iter().for_each(|name| self.delete_later(name));
                self.objects_listed = true;
                let object = self.partial_own.object.take();
                self.modify_own(|own| own.object = object);
                changed
            }
            Event::Apply(object) => {
                let counted = self.counted(&object);
                if counted.metadata.deletion_timestamp.is_some() {
                    self.delete_later(object.name_any());
                    return false;
                }
                let was_held = self.deletions.take_back(&object.name_any());
                let changed = self.index.apply(&counted) || was_held;
                if is_own(&object) {
                    self.modify_own(|own| own.object = Some(object));
                }
                changed
            }
            Event::Delete(object) => {
                if is_own(&object) {
                    self.modify_own(|own| own.object = None);
                }
                self.delete_later(object.name_any());
                false
            }
        }
    }

    /// The object as this node uses it. An object that is being deleted does not count, but a node needs its own one, or it
    /// could not follow the others.
    fn counted<'a>(&self, object: &'a IpipNode) -> Cow<'a, IpipNode> {
        let mut counted = Cow::Borrowed(object);
        let metadata = &object.metadata;
        if metadata.name.as_ref() == Some(&self.name) && metadata.deletion_timestamp.is_some() {
            counted.to_mut().metadata.deletion_timestamp = None;
        }
        counted
    }

    /// A deleted object leaves the index after a time. A finalizer that keeps the object does not make it longer.
    fn delete_later(&mut self, name: String) {
        self.deletions.add(name, Instant::now());
    }

    /// Applies an event of the claims. Returns whether there may be a new update.
    pub fn apply_claim(&mut self, event: Event<IpipClaim>) -> bool {
        let is_own = |claim: &IpipClaim| claim.spec.node == self.name;
        match event {
            Event::Init => {
                self.partial_claims = Index::default();
                self.partial_own.claims.clear();
                false
            }
            Event::InitApply(claim) => {
                self.partial_claims.apply_claim(&claim);
                if is_own(&claim) {
                    self.partial_own.claims.insert(claim.name_any(), claim);
                }
                false
            }
            Event::InitDone => {
                let claims = std::mem::take(&mut self.partial_claims);
                let changed = self.index.replace_claims(claims) || !self.claims_listed;
                self.claims_listed = true;
                let own_claims = std::mem::take(&mut self.partial_own.claims);
                self.modify_own(|own| own.claims = own_claims);
                changed
            }
            Event::Apply(claim) => {
                let changed = self.index.apply_claim(&claim);
                if is_own(&claim) {
                    self.modify_own(|own| drop(own.claims.insert(claim.name_any(), claim)));
                }
                changed
            }
            Event::Delete(claim) => {
                let name = claim.name_any();
                self.modify_own(|own| drop(own.claims.remove(&name)));
                self.index.delete_claim(&name)
            }
        }
    }

    /// Applies an event of the blocks. Returns whether there may be a new update.
    pub fn apply_block(&mut self, event: Event<IpipPodBlock>) -> bool {
        let is_own = |block: &IpipPodBlock| block.spec.node == self.name;
        match event {
            Event::Init => {
                self.partial_blocks = Index::default();
                self.partial_own.blocks.clear();
                false
            }
            Event::InitApply(block) => {
                self.partial_blocks.apply_block(&block);
                if is_own(&block) {
                    self.partial_own.blocks.insert(block.name_any(), block);
                }
                false
            }
            Event::InitDone => {
                let blocks = std::mem::take(&mut self.partial_blocks);
                let changed = self.index.replace_blocks(blocks) || !self.blocks_listed;
                self.blocks_listed = true;
                let own_blocks = std::mem::take(&mut self.partial_own.blocks);
                self.modify_own(|own| own.blocks = own_blocks);
                changed
            }
            Event::Apply(block) => {
                let changed = self.index.apply_block(&block);
                let (name, is_own) = (block.name_any(), is_own(&block));
                self.modify_own(|own| {
                    own.blocks.remove(&name);
                    own.blocks.extend(is_own.then_some((name, block)));
                });
                changed
            }
            Event::Delete(block) => {
                let name = block.name_any();
                self.modify_own(|own| drop(own.blocks.remove(&name)));
                self.index.delete_block(&name)
            }
        }
    }

    /// Changes the publisher's state. Returns whether it is different from before.
    fn modify_own(&self, change: impl FnOnce(&mut OwnObjects)) -> bool {
        self.own.send_if_modified(|own| {
            let before = own.clone();
            change(own);
            own.known = self.all_listed();
            *own != before
        })
    }
}

/// The fields of this node's Node that the agent uses: without images, managed fields and heartbeats.
fn stripped(node: Node) -> Node {
    let condition = |it: NodeCondition| (it.type_ == "NetworkUnavailable").then_some(it);
    let status = node.status.unwrap_or_default();
    Node {
        metadata: ObjectMeta {
            managed_fields: None,
            resource_version: None,
            ..node.metadata
        },
        spec: node.spec,
        status: Some(NodeStatus {
            addresses: status.addresses,
            conditions: status
                .conditions
                .map(|all| all.into_iter().filter_map(condition).collect()),
            ..NodeStatus::default()
        }),
    }
}
