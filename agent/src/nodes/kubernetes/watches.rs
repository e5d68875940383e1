//! Turns the events of two watches, this Node and all IpipNodes, into inventories for the agent and into
//! this node's objects for the publisher.

use super::{crd::IpipNode, index::Index, node_spec, publish::OwnObjects};
use crate::nodes::{Refusal, Update, inventory::InvalidField};
use futures_util::{Stream, StreamExt};
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    ResourceExt,
    runtime::watcher::{Error, Event, Result as WatchResult},
};
use std::{collections::BTreeMap, pin::pin, time::Duration};
use tokio::{
    sync::{mpsc::Sender, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Changes come in bursts; one inventory covers a burst.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// The state that both watches have delivered.
pub struct Watches {
    name: String,
    own: watch::Sender<OwnObjects>,
    updates: Sender<Update>,
    index: Index,
    /// Parts of lists that are not complete yet.
    partial_node: Option<Node>,
    partial_index: Index,
    partial_own: Option<IpipNode>,
    node_listed: bool,
    objects_listed: bool,
    last_refusal: Option<Refusal>,
    /// The nodes that were left out when this was last logged.
    left_out: BTreeMap<String, InvalidField>,
    cut_off: bool,
}

impl Watches {
    /// For the node `name`: its objects go to `own`, inventories and refusals to `updates`.
    pub fn new(name: String, own: watch::Sender<OwnObjects>, updates: Sender<Update>) -> Self {
        Self {
            name,
            own,
            updates,
            index: Index::default(),
            partial_node: None,
            partial_index: Index::default(),
            partial_own: None,
            node_listed: false,
            objects_listed: false,
            last_refusal: None,
            left_out: BTreeMap::new(),
            cut_off: false,
        }
    }

    /// Runs until the receiver of the updates is dropped.
    pub async fn run(
        mut self,
        nodes: impl Stream<Item = WatchResult<Event<Node>>>,
        objects: impl Stream<Item = WatchResult<Event<IpipNode>>>,
    ) {
        let (mut nodes, mut objects) = (pin!(nodes), pin!(objects));
        let updates = self.updates.clone();
        // The time at which the changes so far are sent as one update.
        let mut due: Option<Instant> = None;
        loop {
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
                Some(event) = nodes.next() => self.event(event).is_some_and(|it| self.apply_node(it)),
                Some(event) = objects.next() => self.event(event).is_some_and(|it| self.apply_object(it)),
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
                if !self.objects_listed || !self.node_listed {
                    self.refuse(format!("the API server does not answer: {error}"));
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
        let is_own = |object: &IpipNode| object.metadata.name.as_ref() == Some(&self.name);
        match event {
            Event::Init => {
                self.partial_index = Index::default();
                self.partial_own = None;
                false
            }
            Event::InitApply(object) => {
                self.partial_index.apply(&object);
                if is_own(&object) {
                    self.partial_own = Some(object);
                }
                false
            }
            Event::InitDone => {
                let index = std::mem::take(&mut self.partial_index);
                let changed = index != self.index || !self.objects_listed;
                (self.index, self.objects_listed) = (index, true);
                let object = self.partial_own.take();
                self.modify_own(|own| own.object = object);
                changed
            }
            Event::Apply(object) => {
                let changed = self.index.apply(&object);
                if is_own(&object) {
                    self.modify_own(|own| own.object = Some(object));
                }
                changed
            }
            Event::Delete(object) => {
                if is_own(&object) {
                    self.modify_own(|own| own.object = None);
                }
                self.index.delete(&object.name_any())
            }
        }
    }

    /// Changes the publisher's state. Returns whether it is different from before.
    fn modify_own(&self, change: impl FnOnce(&mut OwnObjects)) -> bool {
        self.own.send_if_modified(|own| {
            let before = own.clone();
            change(own);
            own.known = self.node_listed && self.objects_listed;
            *own != before
        })
    }

    /// The current inventory or refusal; `None` for an unchanged refusal and before both lists are
    /// complete.
    fn update(&mut self) -> Option<Update> {
        if !self.objects_listed || !self.node_listed {
            return None;
        }
        let admission = match self.index.admission() {
            Ok(admission) => admission,
            Err(error) => return self.if_new(Refusal::because(error)).map(Err),
        };
        self.log_left_out(&admission.left_out);
        let own_contradiction = admission.left_out.get(&self.name).map(ToString::to_string);
        self.modify_own(|own| own.left_out = own_contradiction.clone());
        if admission.inventory.node(&self.name).is_some() {
            self.last_refusal = None;
            return Some(Ok(admission.inventory));
        }
        let refusal = match (own_contradiction, &self.own.borrow().node) {
            (Some(why), _) => Refusal::because(format!("other nodes ignore this node: {why}")),
            (None, None) => Refusal::because(format!(
                "nodeName: the API server has no Node called {:?}; remedy: set nodeName to its name there",
                self.name
            )),
            (None, Some(node)) => Refusal {
                why: match node_spec::derive(node, None) {
                    Err(incomplete) => incomplete.to_string(),
                    Ok(_) => "the IpipNode of this node is not written yet".into(),
                },
                waits: true,
            },
        };
        self.if_new(refusal).map(Err)
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

    fn log_left_out(&mut self, now: &BTreeMap<String, InvalidField>) {
        for (node, why) in now {
            if self.left_out.get(node) != Some(why) {
                warn!(node, %why, "a node is left out: it contradicts older ones");
            }
        }
        for node in self.left_out.keys().filter(|it| !now.contains_key(*it)) {
            info!(node, "a node is no longer left out");
        }
        self.left_out.clone_from(now);
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
