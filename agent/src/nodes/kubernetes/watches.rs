//! Turns the events of the watches, this Node, all IpipNodes, IpipClaims and IpipPodBlocks, into inventories for the agent
//! and into this node's objects for the publisher.

use super::{
    backing::{Answer, Backings},
    claim::IpipClaim,
    crd::IpipNode,
    index::Index,
    node_spec,
    pod_block::IpipPodBlock,
    publish::OwnObjects,
};
use crate::nodes::{Refusal, Update, inventory::Fence};
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
    collections::{BTreeMap, BTreeSet, HashSet},
    future::pending,
    net::Ipv4Addr,
    pin::pin,
    time::Duration,
};
use tokio::{
    sync::{
        mpsc::{self, Sender},
        watch,
    },
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Changes come in bursts; one inventory covers a burst.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// Time for which a deleted object stays in use. If a person deletes it, the node's agent writes it again; the other nodes
/// must not lose the peer in between.
const REPLACEMENT: Duration = Duration::from_secs(5);

/// The state that all watches have delivered.
pub struct Watches {
    name: String,
    own: watch::Sender<OwnObjects>,
    updates: Sender<Update>,
    index: Index,
    /// Parts of lists that are not complete yet.
    partial_node: Option<Node>,
    partial_index: Index,
    partial_own: Option<IpipNode>,
    partial_claims: Index,
    partial_own_claims: BTreeMap<String, IpipClaim>,
    partial_blocks: Index,
    partial_own_blocks: BTreeMap<String, IpipPodBlock>,
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
    last_refusal: Option<Refusal>,
    /// The deleted objects whose claims are still in the index, and the time at which they leave it.
    deleted: BTreeMap<String, Instant>,
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
}

impl Watches {
    /// For the node `name`: its objects go to `own`, inventories and refusals to `updates`. If there is a pool,
    /// `no_block` is the reason why the node has no block.
    pub fn new(
        name: String,
        backings: Backings,
        no_block: Option<watch::Receiver<Option<String>>>,
        own: watch::Sender<OwnObjects>,
        updates: Sender<Update>,
    ) -> Self {
        Self {
            name,
            own,
            updates,
            index: Index::default(),
            partial_node: None,
            partial_index: Index::default(),
            partial_own: None,
            partial_claims: Index::default(),
            partial_own_claims: BTreeMap::new(),
            partial_blocks: Index::default(),
            partial_own_blocks: BTreeMap::new(),
            node_listed: false,
            objects_listed: false,
            claims_listed: false,
            blocks_listed: no_block.is_none(),
            no_block,
            api_server: BTreeSet::new(),
            backings,
            fenced: false,
            not_compared: None,
            last_refusal: None,
            deleted: BTreeMap::new(),
            cut_off: false,
        }
    }

    /// Runs until the receiver of the updates is dropped. `blocks` is used only if there is a pool.
    pub async fn run(
        mut self,
        nodes: impl Stream<Item = WatchResult<Event<Node>>>,
        objects: impl Stream<Item = WatchResult<Event<IpipNode>>>,
        claims: impl Stream<Item = WatchResult<Event<IpipClaim>>>,
        blocks: impl Stream<Item = WatchResult<Event<IpipPodBlock>>>,
        read: Read,
    ) {
        let Read {
            mut api_server,
            mut fence,
            mut answers,
        } = read;
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
        loop {
            let end_of_claims = self.deleted.values().min().copied();
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
                        permit.send(update);
                    }
                    continue;
                }
                () = sleep_until(end_of_claims.unwrap_or_else(Instant::now)), if end_of_claims.is_some() => {
                    self.end_claims(Instant::now())
                }
                Some(event) = nodes.next() => self.event(event).is_some_and(|it| self.apply_node(it)),
                Some(event) = objects.next() => self.event(event).is_some_and(|it| self.apply_object(it)),
                Some(event) = claims.next() => self.event(event).is_some_and(|it| self.apply_claim(it)),
                Some(event) = blocks.next(), if has_pool => {
                    self.event(event).is_some_and(|it| self.apply_block(it))
                }
                Ok(()) = new_reason() => true,
                Ok(()) = api_server.changed() => {
                    self.api_server.clone_from(&api_server.borrow_and_update());
                    true
                }
                Ok(()) = fence.changed() => {
                    if let Some(fence) = fence.borrow_and_update().clone() {
                        self.backings.set_fence(fence);
                        self.fenced = true;
                    }
                    true
                }
                Some(answer) = answers.recv() => {
                    self.backings.answer(answer);
                    true
                }
            };
            if changed && due.is_none() {
                due = Some(Instant::now() + DEBOUNCE);
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
                self.partial_node = None;
                return false;
            }
            Event::InitApply(node) => {
                self.partial_node = Some(node);
                return false;
            }
            Event::InitDone => {
                self.node_listed = true;
                self.partial_node.take()
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
                self.partial_own = None;
                false
            }
            Event::InitApply(object) => {
                self.partial_index.apply(&self.counted(&object));
                if is_own(&object) {
                    self.partial_own = Some(object);
                }
                false
            }
            Event::InitDone => {
                self.deleted.clear();
                let index = std::mem::take(&mut self.partial_index);
                let changed = self.index.replace_nodes(index) || !self.objects_listed;
                self.objects_listed = true;
                let object = self.partial_own.take();
                self.modify_own(|own| own.object = object);
                changed
            }
            Event::Apply(object) => {
                let counted = self.counted(&object);
                if counted.metadata.deletion_timestamp.is_some() {
                    self.delete_later(&object);
                    return false;
                }
                self.deleted.remove(&object.name_any());
                let changed = self.index.apply(&counted);
                if is_own(&object) {
                    self.modify_own(|own| own.object = Some(object));
                }
                changed
            }
            Event::Delete(object) => {
                if is_own(&object) {
                    self.modify_own(|own| own.object = None);
                }
                self.delete_later(&object);
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

    /// Ends the claims of a deleted object after a time. A finalizer that keeps the object does not make it longer.
    fn delete_later(&mut self, object: &IpipNode) {
        let end = Instant::now() + REPLACEMENT;
        self.deleted.entry(object.name_any()).or_insert(end);
    }

    /// Applies an event of the claims. Returns whether there may be a new update.
    fn apply_claim(&mut self, event: Event<IpipClaim>) -> bool {
        let is_own = |claim: &IpipClaim| claim.spec.node == self.name;
        match event {
            Event::Init => {
                self.partial_claims = Index::default();
                self.partial_own_claims.clear();
                false
            }
            Event::InitApply(claim) => {
                self.partial_claims.apply_claim(&claim);
                if is_own(&claim) {
                    self.partial_own_claims.insert(claim.name_any(), claim);
                }
                false
            }
            Event::InitDone => {
                let claims = std::mem::take(&mut self.partial_claims);
                let changed = self.index.replace_claims(claims) || !self.claims_listed;
                self.claims_listed = true;
                let own_claims = std::mem::take(&mut self.partial_own_claims);
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
                self.partial_own_blocks.clear();
                false
            }
            Event::InitApply(block) => {
                self.partial_blocks.apply_block(&block);
                if is_own(&block) {
                    self.partial_own_blocks.insert(block.name_any(), block);
                }
                false
            }
            Event::InitDone => {
                let blocks = std::mem::take(&mut self.partial_blocks);
                let changed = self.index.replace_blocks(blocks) || !self.blocks_listed;
                self.blocks_listed = true;
                let own_blocks = std::mem::take(&mut self.partial_own_blocks);
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

    /// Removes the claims of deleted objects that have no replacement at `now`. Returns whether there are any.
    fn end_claims(&mut self, now: Instant) -> bool {
        let (ended, kept) = std::mem::take(&mut self.deleted)
            .into_iter()
            .partition(|(_, end)| *end <= now);
        self.deleted = kept;
        let ended: BTreeMap<String, Instant> = ended;
        for name in ended.keys() {
            self.index.delete(name);
        }
        !ended.is_empty()
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
            return self.if_new(Refusal { why, waits: true }).map(Err);
        }
        let backings = &self.backings;
        let mut inventory = self.index.inventory(
            &self.name,
            |claim| backings.apply(claim),
            |block| backings.allow(block),
        );
        inventory.api_server.clone_from(&self.api_server);
        if inventory.node(&self.name).is_some() {
            self.last_refusal = None;
            return Some(Ok(inventory));
        }
        let refusal = match &self.own.borrow().node {
            None => Refusal::because(format!(
                "nodeName: the API server has no Node called {:?}; remedy: set nodeName to its name there",
                self.name
            )),
            Some(node) => Refusal {
                why: match node_spec::derive(node, self.claimed(), None) {
                    Err(incomplete) => incomplete.to_string(),
                    Ok(_) => "the IpipNode of this node is not written yet".into(),
                },
                waits: true,
            },
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
mod tests {
    use super::{super::backing::Request, *};
    use crate::nodes::inventory::Inventory;
    use futures_util::stream;
    use serde_json::json;
    use tokio::sync::mpsc::{self, UnboundedReceiver};

    fn object(name: &str, created: &str, endpoint: &str) -> IpipNode {
        let number = name.len();
        serde_json::from_value(json!({
            "apiVersion": "ipip.dev/v1alpha1",
            "kind": "IpipNode",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {
                "internalIPs": [format!("10.0.0.{number}")],
                "podCIDRs": [format!("10.42.{number}.0/24")],
                "publicEndpoint": endpoint,
            },
        }))
        .unwrap()
    }

    fn events<K>(events: UnboundedReceiver<Event<K>>) -> impl Stream<Item = WatchResult<Event<K>>> {
        stream::unfold(events, async |mut events| {
            let event = events.recv().await?;
            Some((Ok(event), events))
        })
    }

    /// Answers as an API server that has the Nodes `own` and `peer`.
    async fn answer(
        mut requested: UnboundedReceiver<Request>,
        replies: mpsc::UnboundedSender<Answer>,
    ) {
        while let Some(request) = requested.recv().await {
            let number = request.name().len();
            let node = serde_json::from_value(json!({
                "metadata": {"name": request.name()},
                "spec": {"podCIDR": format!("10.42.{number}.0/24")},
                "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
            }));
            replies.send(request.answer(&node.unwrap())).unwrap();
        }
    }

    #[tokio::test]
    async fn a_peer_whose_object_is_replaced_never_leaves_and_one_that_is_deleted_does() {
        let (own, _observed) = watch::channel(OwnObjects::default());
        let (updates, mut inventories) = mpsc::channel(16);
        let (node_sender, nodes) = mpsc::unbounded_channel();
        let (sender, objects) = mpsc::unbounded_channel();
        let (claim_sender, claims) = mpsc::unbounded_channel();
        let (_block_sender, blocks) = mpsc::unbounded_channel();
        let (_addresses, api_server) = watch::channel(BTreeSet::new());
        let (requests, requested) = mpsc::unbounded_channel();
        let (replies, answers) = mpsc::unbounded_channel();
        tokio::spawn(answer(requested, replies));
        let (ranges, fence) = watch::channel(None);
        ranges.send(Some(Fence::default())).unwrap();
        let backings = Backings::new(requests);
        let watches = Watches::new("own".into(), backings, None, own, updates);
        let run = watches.run(
            events(nodes),
            events(objects),
            events(claims),
            events(blocks),
            Read {
                api_server,
                fence,
                answers,
            },
        );
        tokio::spawn(run);
        for event in [Event::Init, Event::InitDone] {
            node_sender.send(event).unwrap();
        }
        for event in [Event::Init, Event::InitDone] {
            claim_sender.send(event).unwrap();
        }
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        for event in [
            Event::Init,
            Event::InitApply(object("own", old, "203.0.113.1")),
            Event::InitApply(object("peer", old, "203.0.113.2")),
            Event::InitDone,
        ] {
            sender.send(event).unwrap();
        }
        let mut next = async || -> Inventory {
            loop {
                match inventories.recv().await.unwrap() {
                    Ok(inventory) => return inventory,
                    Err(refusal) => assert!(refusal.waits, "{refusal}"),
                }
            }
        };
        assert!(next().await.node("peer").is_some());

        let deleted = object("peer", old, "203.0.113.2");
        sender.send(Event::Delete(deleted)).unwrap();
        // The agent of the peer needs a moment for the new object.
        tokio::time::sleep(10 * DEBOUNCE).await;
        let replaced = object("peer", new, "203.0.113.3");
        sender.send(Event::Apply(replaced.clone())).unwrap();
        let inventory = next().await;
        let endpoint = inventory.node("peer").unwrap().public_endpoint;
        assert_eq!(endpoint, Some(Ipv4Addr::new(203, 0, 113, 3)));

        sender.send(Event::Delete(replaced)).unwrap();
        assert_eq!(next().await.node("peer"), None);
    }
}
