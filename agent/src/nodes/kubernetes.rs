//! The Kubernetes API: this node's own Node, and the IpipNode of every node. Never all Nodes, whose
//! heartbeats would reach every agent.

pub mod api_server;
mod client;
pub mod crd;
pub mod node_spec;

mod index;
mod publish;

use super::{NodeSource, Refusal, Report, Update};
use crate::{config::Config, nodes::inventory::InvalidField};
use crd::IpipNode;
use futures_util::{Stream, StreamExt};
use index::Index;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use node_spec::announce;
use publish::{View, publish};
use std::{collections::BTreeMap, pin::pin, time::Duration};
use tokio::{
    sync::{mpsc::Sender, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

/// Changes often come in swarms; one inventory tells them all.
const SWARM: Duration = Duration::from_millis(10);
/// A watch is asked for anew this often, so a connection that died unheard is missed for no longer.
const WATCH_SECONDS: u32 = 150;
/// Objects in one answer: what a thousand nodes say is never in memory at once.
const PAGE: u32 = 250;

/// The Kubernetes API, as the agent of one node reads it and writes to it.
pub struct KubernetesSource {
    config: Config,
    report: watch::Receiver<Report>,
}

impl KubernetesSource {
    /// The source for the node that `config` names; `report` tells how its agent fares.
    pub fn new(config: Config, report: watch::Receiver<Report>) -> Self {
        Self { config, report }
    }

    /// A client, however long it takes until there can be one.
    async fn connect(&self, updates: &Sender<Update>) -> Option<Client> {
        let mut backoff = DefaultBackoff::default();
        loop {
            let refusal = match api_server::client_config(&self.config).await {
                Ok((client, why)) => {
                    info!(url = %client.cluster_url, why, "this API server is used");
                    match client::client(client) {
                        Ok(client) => return Some(client),
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            updates.send(Err(Refusal::because(refusal))).await.ok()?;
            sleep(backoff.next().unwrap_or(Duration::from_secs(30))).await;
        }
    }
}

impl NodeSource for KubernetesSource {
    async fn watch(self, updates: Sender<Update>) {
        let Some(client) = self.connect(&updates).await else {
            return;
        };
        let name = self.config.node_name.clone();
        let (view, viewed) = watch::channel(View::default());
        tokio::spawn(publish(client.clone(), viewed, self.report));
        let settings = || {
            watcher::Config::default()
                .timeout(WATCH_SECONDS)
                .page_size(PAGE)
        };
        let own_node = settings().fields(&format!("metadata.name={name}"));
        let own_node = watcher(Api::<Node>::all(client.clone()), own_node).default_backoff();
        let objects = watcher(Api::<IpipNode>::all(client), settings()).default_backoff();
        Follower::new(name, view, updates)
            .follow(own_node, objects)
            .await;
    }
}

struct Follower {
    name: String,
    view: watch::Sender<View>,
    updates: Sender<Update>,
    index: Index,
    /// Lists that are not complete yet.
    coming_node: Option<Node>,
    coming: Index,
    coming_own: Option<IpipNode>,
    node_listed: bool,
    objects_listed: bool,
    last_refusal: Option<Refusal>,
    /// Who was left out when it was last logged.
    left_out: BTreeMap<String, InvalidField>,
    cut_off: bool,
}

impl Follower {
    fn new(name: String, view: watch::Sender<View>, updates: Sender<Update>) -> Self {
        Self {
            name,
            view,
            updates,
            index: Index::default(),
            coming_node: None,
            coming: Index::default(),
            coming_own: None,
            node_listed: false,
            objects_listed: false,
            last_refusal: None,
            left_out: BTreeMap::new(),
            cut_off: false,
        }
    }

    async fn follow(
        mut self,
        own_node: impl Stream<Item = watcher::Result<Event<Node>>>,
        objects: impl Stream<Item = watcher::Result<Event<IpipNode>>>,
    ) {
        let (mut own_node, mut objects) = (pin!(own_node), pin!(objects));
        let updates = self.updates.clone();
        // When what is new is sent on.
        let mut due: Option<Instant> = None;
        loop {
            let room = async {
                sleep_until(due.unwrap_or_else(Instant::now)).await;
                updates.reserve().await
            };
            let news = tokio::select! {
                () = updates.closed() => return,
                permit = room, if due.is_some() => {
                    let Ok(permit) = permit else { return };
                    due = None;
                    if let Some(update) = self.update() {
                        permit.send(update);
                    }
                    continue;
                }
                Some(event) = own_node.next() => self.hear(event).is_some_and(|it| self.take_node(it)),
                Some(event) = objects.next() => self.hear(event).is_some_and(|it| self.take_object(it)),
            };
            if news && due.is_none() {
                due = Some(Instant::now() + SWARM);
            }
        }
    }

    /// The event, if it is one; says when the API server goes and comes.
    fn hear<K>(&mut self, event: watcher::Result<Event<K>>) -> Option<Event<K>> {
        match event {
            Ok(event) => {
                if self.cut_off {
                    info!("the API server answers again");
                }
                self.cut_off = false;
                Some(event)
            }
            // The usual end of a long watch.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => None,
            Err(error) => {
                if !self.cut_off {
                    warn!(%error, "the API server does not answer; the datapath goes on, and it is tried again");
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

    /// Takes an event in; whether there may be something to send on.
    fn take_node(&mut self, event: Event<Node>) -> bool {
        let node = match event {
            Event::Init => {
                self.coming_node = None;
                return false;
            }
            Event::InitApply(node) => {
                self.coming_node = Some(node);
                return false;
            }
            Event::InitDone => {
                self.node_listed = true;
                self.coming_node.take()
            }
            Event::Apply(node) => Some(node),
            Event::Delete(_) => None,
        };
        self.see(|view| view.node = node.map(stripped))
    }

    /// Takes an event in; whether there may be something to send on.
    fn take_object(&mut self, event: Event<IpipNode>) -> bool {
        let is_own = |object: &IpipNode| object.metadata.name.as_ref() == Some(&self.name);
        match event {
            Event::Init => {
                self.coming = Index::default();
                self.coming_own = None;
                false
            }
            Event::InitApply(object) => {
                self.coming.apply(&object);
                if is_own(&object) {
                    self.coming_own = Some(object);
                }
                false
            }
            Event::InitDone => {
                let index = std::mem::take(&mut self.coming);
                let changed = index != self.index || !self.objects_listed;
                (self.index, self.objects_listed) = (index, true);
                let own = self.coming_own.take();
                self.see(|view| view.own = own);
                changed
            }
            Event::Apply(object) => {
                let changed = self.index.apply(&object);
                if is_own(&object) {
                    self.see(|view| view.own = Some(object));
                }
                changed
            }
            Event::Delete(object) => {
                if is_own(&object) {
                    self.see(|view| view.own = None);
                }
                self.index.delete(&object.name_any())
            }
        }
    }

    /// Changes what the publisher sees; whether anything is other than before.
    fn see(&self, change: impl FnOnce(&mut View)) -> bool {
        self.view.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            view.known = self.node_listed && self.objects_listed;
            *view != before
        })
    }

    /// What there is now, if it is something new.
    fn update(&mut self) -> Option<Update> {
        if !self.objects_listed || !self.node_listed {
            return None;
        }
        let admission = match self.index.admission() {
            Ok(admission) => admission,
            Err(error) => return self.refusal(Refusal::because(error)).map(Err),
        };
        self.log_left_out(&admission.left_out);
        let own_problem = admission
            .left_out
            .get(&self.name)
            .map(InvalidField::to_string);
        self.see(|view| view.left_out = own_problem.clone());
        if admission.inventory.node(&self.name).is_some() {
            self.last_refusal = None;
            return Some(Ok(admission.inventory));
        }
        let refusal = match (own_problem, &self.view.borrow().node) {
            (Some(problem), _) => Refusal::because(format!("no node uses this one: {problem}")),
            (None, None) => Refusal::because(format!(
                "nodeName: the API server has no Node called {:?}; remedy: set nodeName to its name there",
                self.name
            )),
            (None, Some(node)) => Refusal {
                why: match announce(node, None) {
                    Err(waiting) => waiting.to_string(),
                    Ok(_) => "the IpipNode of this node is not written yet".into(),
                },
                waits: true,
            },
        };
        self.refusal(refusal).map(Err)
    }

    fn refuse(&mut self, why: String) {
        if let Some(refusal) = self.refusal(Refusal::because(why))
            && self.updates.try_send(Err(refusal)).is_err()
        {
            // Next time, then.
            self.last_refusal = None;
        }
    }

    /// The refusal, if it is not the same as before.
    fn refusal(&mut self, refusal: Refusal) -> Option<Refusal> {
        let is_new = self.last_refusal.as_ref() != Some(&refusal);
        is_new.then(|| {
            self.last_refusal = Some(refusal.clone());
            refusal
        })
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

/// Of this node's Node what counts here: neither images nor who wrote which field nor when the
/// kubelet was last heard.
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
