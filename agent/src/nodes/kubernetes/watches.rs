//! Turns the events of the watches, this Node, all IpipNodes, IpipClaims and IpipPodBlocks, into inventories for the agent
//! and into this node's objects for the publisher.

use super::{
    backing::{Answer, Backings},
    claim::IpipClaim,
    crd::IpipNode,
    deletions::Deletions,
    index::Index,
    node_spec,
    pod_block::IpipPodBlock,
    publish::OwnObjects,
    rights::TooManyRights,
};
use crate::{
    nodes::{
        Refusal, Update,
        inventory::{Fence, Inventory},
    },
    send_if_new::send_if_new,
};
use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    ResourceExt,
    runtime::watcher::{Error, Event, Result as WatchResult},
};
use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
    future::pending,
    net::Ipv4Addr,
    pin::pin,
    time::Duration,
};
use tokio::{
    sync::{
        mpsc::{self, Receiver, Sender},
        watch,
    },
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Changes come in bursts; one inventory covers a burst.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Minimum time between two updates. A node can change its objects as often as it likes; each update costs all others a
/// reconciliation.
const INTERVAL: Duration = Duration::from_secs(1);

/// The state that all watches have delivered.
pub struct Watches {
    name: String,
    own: watch::Sender<OwnObjects>,
    updates: Sender<Update>,
    index: Index,
    /// Parts of lists that are not complete yet.
    partial_own: OwnObjects,
    partial_index: Index,
    partial_claims: Index,
    partial_blocks: Index,
    node_listed: bool,
    objects_listed: bool,
    claims_listed: bool,
    /// Also set if there is no pool.
    blocks_listed: bool,
    /// The reason why this node has no block of the pool. `None` without a pool.
    no_block: Option<watch::Receiver<Option<String>>>,
    /// The addresses of the API server.
    api_server: BTreeSet<Ipv4Addr>,
    backings: Backings,
    /// Whether the ranges of the cluster are known.
    fenced: bool,
    /// The nodes of the first lists whose claims are not compared with their Nodes yet; `None` before the lists.
    not_compared: Option<HashSet<String>>,
    too_many_rights: Option<TooManyRights>,
    last_refusal: Option<Refusal>,
    /// The last inventory that was sent.
    last_sent: Option<Inventory>,
    /// The deleted IpipNodes that are still in the index.
    deletions: Deletions,
    /// Those of them that are held although they were deleted a while ago.
    held: watch::Sender<BTreeSet<String>>,
    /// Whether the watch of the IpipNodes works.
    objects_answer: bool,
    cut_off: bool,
}

/// What the agent reads beside the watches.
pub struct Read {
    /// The addresses of the API server.
    pub api_server: watch::Receiver<BTreeSet<Ipv4Addr>>,
    /// The ranges of the cluster, when they are known.
    pub fence: watch::Receiver<Option<Fence>>,
    /// Nodes that back claims.
    pub answers: mpsc::UnboundedReceiver<Answer>,
    /// Held IpipNodes whose Node does not exist.
    pub gone: Receiver<String>,
    /// Set while no change may be followed.
    pub too_many_rights: watch::Receiver<Option<TooManyRights>>,
}

impl Watches {
    /// For the node `name`: its objects go to `own`, inventories and refusals to `updates`, and the names of held IpipNodes
    /// to `held`. If there is a pool, `no_block` is the reason why the node has no block.
    pub fn new(
        name: String,
        backings: Backings,
        no_block: Option<watch::Receiver<Option<String>>>,
        own: watch::Sender<OwnObjects>,
        held: watch::Sender<BTreeSet<String>>,
        updates: Sender<Update>,
    ) -> Self {
        Self {
            name,
            own,
            updates,
            index: Index::default(),
            partial_own: OwnObjects::default(),
            partial_index: Index::default(),
            partial_claims: Index::default(),
            partial_blocks: Index::default(),
            node_listed: false,
            objects_listed: false,
            claims_listed: false,
            blocks_listed: no_block.is_none(),
            no_block,
            api_server: BTreeSet::new(),
            backings,
            fenced: false,
            not_compared: None,
            too_many_rights: None,
            last_refusal: None,
            last_sent: None,
            deletions: Deletions::default(),
            held,
            objects_answer: false,
            cut_off: false,
        }
    }

    /// Runs until the receiver of the updates is dropped. The blocks are used only if there is a pool.
    pub async fn run(
        mut self,
        (nodes, objects, claims, blocks): (
            impl Stream<Item = WatchResult<Event<Node>>>,
            impl Stream<Item = WatchResult<Event<IpipNode>>>,
            impl Stream<Item = WatchResult<Event<IpipClaim>>>,
            impl Stream<Item = WatchResult<Event<IpipPodBlock>>>,
        ),
        mut read: Read,
    ) {
        let (mut nodes, mut objects) = (pin!(nodes), pin!(objects));
        let (mut claims, mut blocks) = (pin!(claims), pin!(blocks));
        let has_pool = self.no_block.is_some();
        let mut no_block = self.no_block.clone();
        let mut new_reason = async || match &mut no_block {
            Some(no_block) => no_block.changed().await,
            None => pending().await,
        };
        let updates = self.updates.clone();
        // The time at which the changes so far are sent as one update.
        let mut due: Option<Instant> = None;
        let mut earliest = Instant::now();
        loop {
            let end_of_deletions = self.deletions.due();
            let room = async {
                sleep_until(due.unwrap_or_else(Instant::now)).await;
                updates.reserve().await
            };
            let changed = tokio::select! {
                () = updates.closed() => return,
                permit = room, if due.is_some() => {
                    let Ok(permit) = permit else { return };
                    due = None;
                    if let Some(update) = self.update() {
                        if update.is_ok() {
                            earliest = Instant::now() + INTERVAL;
                        }
                        permit.send(update);
                    }
                    continue;
                }
                () = sleep_until(end_of_deletions.unwrap_or_else(Instant::now)), if end_of_deletions.is_some() => {
                    self.end_deletions(Instant::now())
                }
                Some(name) = read.gone.recv() => self.node_is_gone(&name),
                Some(event) = nodes.next() => self.event(event).is_some_and(|it| self.apply_node(it)),
                Some(event) = objects.next() => {
                    self.objects_answer = event.is_ok();
                    self.event(event).is_some_and(|it| self.apply_object(it))
                }
                Some(event) = claims.next() => self.event(event).is_some_and(|it| self.apply_claim(it)),
                Some(event) = blocks.next(), if has_pool => {
                    self.event(event).is_some_and(|it| self.apply_block(it))
                }
                Ok(()) = new_reason() => true,
                Ok(()) = read.api_server.changed() => {
                    self.api_server.clone_from(&read.api_server.borrow_and_update());
                    true
                }
                Ok(()) = read.too_many_rights.changed() => {
                    self.too_many_rights.clone_from(&read.too_many_rights.borrow_and_update());
                    true
                }
                Ok(()) = read.fence.changed() => {
                    if let Some(fence) = read.fence.borrow_and_update().clone() {
                        self.backings.set_fence(fence);
                        self.fenced = true;
                    }
                    true
                }
                Some(answer) = read.answers.recv() => {
                    self.backings.answer(answer);
                    true
                }
            };
            if changed && due.is_none() {
                due = Some((Instant::now() + DEBOUNCE).max(earliest));
            }
        }
    }

    /// Unwraps an event. Logs when the API server becomes unreachable and when it is back.
    fn event<K>(&mut self, event: WatchResult<Event<K>>) -> Option<Event<K>> {
        match event {
            Ok(event) => {
                if self.cut_off {
                    info!("the API server answers again");
                }
                self.cut_off = false;
                Some(event)
            }
            // 410 Gone: the usual end of a long watch.
            Err(Error::WatchError(status)) if status.code == 410 => None,
            Err(error) => {
                if !self.cut_off {
                    warn!(%error, "the API server does not answer; the datapath keeps its last state, and the agent tries again");
                }
                debug!(%error, "the API server does not answer");
                self.cut_off = true;
                if !self.all_listed() {
                    self.refuse(reason(&error));
                }
                None
            }
        }
    }

    /// Applies an event of this Node. Returns whether there may be a new update.
    fn apply_node(&mut self, event: Event<Node>) -> bool {
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
    fn apply_object(&mut self, event: Event<IpipNode>) -> bool {
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
    fn apply_claim(&mut self, event: Event<IpipClaim>) -> bool {
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
    fn apply_block(&mut self, event: Event<IpipPodBlock>) -> bool {
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

    fn all_listed(&self) -> bool {
        self.node_listed && self.objects_listed && self.claims_listed && self.blocks_listed
    }

    /// Removes the deleted objects whose time has come at `now`. Returns whether there may be a new update.
    fn end_deletions(&mut self, now: Instant) -> bool {
        let names = self.index.names();
        let peers = names.iter().filter(|name| **name != self.name).count();
        let held = self.deletions.held();
        let ended = self
            .deletions
            .end(now, peers, &self.name, self.objects_answer);
        for name in &ended {
            self.index.delete(name);
        }
        let now_held = self.deletions.held();
        if now_held.len() > held.len() {
            let nodes = now_held.iter().filter(|it| **it != self.name).count();
            warn!(
                nodes,
                peers, "most IpipNodes were deleted together: their nodes are held"
            );
        }
        !ended.is_empty() || now_held != held
    }

    /// Removes an object that is held, because its Node is gone, too. Returns whether there may be a new update.
    fn node_is_gone(&mut self, name: &str) -> bool {
        self.deletions.node_is_gone(name) && self.index.delete(name)
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

    /// The current inventory or refusal; `None` for an unchanged refusal and before all lists are
    /// complete.
    fn update(&mut self) -> Option<Update> {
        if let Some(too_many) = self.too_many_rights.clone() {
            self.last_sent = None;
            return self.if_new(too_many.into()).map(Err);
        }
        if !self.all_listed() {
            return None;
        }
        let waiting = self.compare();
        // Nodes that join in the meantime do not delay the first inventory.
        let not_compared = self.not_compared.get_or_insert_with(|| waiting.clone());
        not_compared.retain(|name| waiting.contains(name));
        if !self.fenced || !not_compared.is_empty() {
            let what = if self.fenced {
                "the Nodes of the IpipNodes are"
            } else {
                "the ranges of the cluster's pods and Services are"
            };
            let why = format!("{what} not read yet");
            return self.if_new(Refusal::until(why)).map(Err);
        }
        let backings = &self.backings;
        let mut inventory = self.index.inventory(
            &self.name,
            |claim| backings.apply(claim),
            |block| backings.allow(block),
        );
        inventory.api_server.clone_from(&self.api_server);
        inventory.held = self.deletions.held();
        send_if_new(&self.held, inventory.held.clone());
        if inventory.node(&self.name).is_some() {
            self.last_refusal = None;
            if self.last_sent.as_ref() == Some(&inventory) {
                return None;
            }
            self.last_sent = Some(inventory.clone());
            return Some(Ok(inventory));
        }
        self.last_sent = None;
        let refusal = match &self.own.borrow().node {
            None => Refusal::because(format!(
                "nodeName: the API server has no Node called {:?}; remedy: set nodeName to its name there",
                self.name
            )),
            Some(node) => Refusal::until(match node_spec::derive(node, self.claimed(), None) {
                Err(incomplete) => incomplete.to_string(),
                Ok(_) => "the IpipNode of this node is not written yet".into(),
            }),
        };
        self.if_new(refusal).map(Err)
    }

    /// Compares all claims with their Nodes. Returns the nodes that wait for the API server.
    fn compare(&mut self) -> HashSet<String> {
        let claims = self.index.claims();
        let claims = claims.iter().map(|(node, blocks)| (*node, &**blocks));
        let own = self.own.borrow();
        self.backings
            .compare(claims, own.node.as_ref(), Instant::now())
    }

    /// Whether this node, which has no IpipNode yet, has a block of the pool. `None` without a pool.
    fn claimed(&self) -> Option<node_spec::Claimed<'static>> {
        let no_block = self.no_block.as_ref()?.borrow().clone();
        Some(Err(no_block.unwrap_or_else(|| {
            "clusterPodCIDRs: this node has claimed no block yet".into()
        })))
    }

    fn refuse(&mut self, why: String) {
        if let Some(refusal) = self.if_new(Refusal::because(why))
            && self.updates.try_send(Err(refusal)).is_err()
        {
            // The channel is full: the next attempt sends it.
            self.last_refusal = None;
        }
    }

    /// The refusal, if it differs from the last one.
    fn if_new(&mut self, refusal: Refusal) -> Option<Refusal> {
        if self.last_refusal.as_ref() == Some(&refusal) {
            return None;
        }
        self.last_refusal = Some(refusal.clone());
        Some(refusal)
    }
}

/// Why a list cannot be read.
fn reason(error: &Error) -> String {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404 => {
            "the API server does not know a kind of this project; remedy: kubectl apply -f manifests/base/crd.yaml (Helm does not update CRDs)".into()
        }
        error => format!("the API server does not answer: {error}"),
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

#[cfg(test)]
mod tests;
