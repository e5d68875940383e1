//! Turns the events of the watches, this Node, all IpipNodes, IpipClaims and IpipPodBlocks, into inventories for the agent
//! and into this node's objects for the publisher.

mod events;

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
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{Error, Event, Result as WatchResult};
use std::{
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
        inventory.endpoint_is_stated = self.states_endpoint();
        inventory.is_published = true;
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

    /// Whether this node's Node states its public endpoint, or that it has none.
    fn states_endpoint(&self) -> bool {
        let own = self.own.borrow();
        own.node.as_ref().is_some_and(node_spec::states_endpoint)
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

#[cfg(test)]
mod tests;
