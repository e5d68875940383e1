//! Tells the API server of this node: its IpipNode, the condition of its Node, and Events.

use super::{
    crd::{IpipNode, IpipNodeSpec, IpipNodeStatus, ready},
    node_spec::{Announcement, Waiting, announce},
};
use crate::nodes::Report;
use k8s_openapi::{
    api::core::v1::{Node, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        utils::Backoff,
        watcher::DefaultBackoff,
    },
};
use serde_json::json;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::watch::Receiver, time::sleep};
use tracing::{info, warn};

/// Who writes, as the API server notes it.
pub const MANAGER: &str = "ipip-agent";
/// No more often: every agent of the cluster hears of every write.
const CALM: Duration = Duration::from_secs(1);

/// What this node's objects are now, as far as is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Its Node.
    pub node: Option<Node>,
    /// Its IpipNode.
    pub own: Option<IpipNode>,
    /// Whether the two above are known, also if they are absent.
    pub known: bool,
    /// What keeps it out of the cluster's inventory.
    pub left_out: Option<String>,
}

/// Writes what differs, until nobody changes `view` any more.
pub async fn publish(client: Client, mut view: Receiver<View>, mut report: Receiver<Report>) {
    let reporter = Reporter {
        controller: "ipip.dev/agent".into(),
        instance: None,
    };
    let mut publisher = Publisher {
        nodes: Api::all(client.clone()),
        objects: Api::all(client.clone()),
        recorder: Recorder::new(client, reporter),
        told: BTreeSet::new(),
    };
    let mut backoff = DefaultBackoff::default();
    loop {
        let now = view.borrow_and_update().clone();
        let about = report.borrow_and_update().clone();
        let written = publisher.write(&now, &about).await;
        match written {
            Ok(()) => {
                backoff.reset();
                sleep(CALM).await;
                tokio::select! {
                    changed = view.changed() => if changed.is_err() { return },
                    changed = report.changed() => if changed.is_err() { return },
                }
            }
            Err(error) => {
                let again_in = backoff.next().unwrap_or(CALM);
                warn!(%error, ?again_in, "cannot tell the API server of this node");
                sleep(again_in).await;
                // Whoever watches has ended.
                if view.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

struct Publisher {
    nodes: Api<Node>,
    objects: Api<IpipNode>,
    recorder: Recorder,
    /// Texts of the Events that are true now.
    told: BTreeSet<String>,
}

impl Publisher {
    async fn write(&mut self, view: &View, report: &Report) -> Result<(), kube::Error> {
        let (Some(node), true) = (&view.node, view.known) else {
            return Ok(());
        };
        let own = view.own.as_ref();
        let announced = announce(node, own.map(|own| &own.spec));
        self.tell(node, &announced, view.left_out.as_deref(), &report.remarks)
            .await?;
        let Ok(announcement) = announced else {
            return Ok(());
        };
        let name = node.name_any();
        if let Some(own) = own.filter(|own| is_another(own, node, &announcement.spec)) {
            info!("this node's addresses changed: it gets a new IpipNode");
            self.delete(own).await?;
        }
        let as_is = own.is_some_and(|own| {
            own.spec == announcement.spec && !is_another(own, node, &announcement.spec)
        });
        if !as_is {
            let object = self.apply(&name, node, &announcement.spec).await?;
            info!(spec = ?object.spec, "the IpipNode of this node is written");
        }
        if let Some(status) = status(own, &announcement, view, report) {
            let patch = json!({
                "apiVersion": IpipNode::api_version(&()),
                "kind": IpipNode::kind(&()),
                "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            self.objects
                .patch_status(&name, &params, &Patch::Apply(patch))
                .await?;
        }
        match (&report.ready, &view.left_out) {
            (Some(Ok(())), None) => self.network_is_available(node).await,
            _ => Ok(()),
        }
    }

    async fn apply(
        &self,
        name: &str,
        node: &Node,
        spec: &IpipNodeSpec,
    ) -> Result<IpipNode, kube::Error> {
        let owner = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "name": name,
            "uid": node.metadata.uid,
        });
        let patch = json!({
            "apiVersion": IpipNode::api_version(&()),
            "kind": IpipNode::kind(&()),
            "metadata": {"name": name, "ownerReferences": [owner]},
            "spec": spec,
        });
        let params = PatchParams::apply(MANAGER).force();
        self.objects
            .patch(name, &params, &Patch::Apply(patch))
            .await
    }

    /// Deletes that very object, not one that has come since.
    async fn delete(&self, own: &IpipNode) -> Result<(), kube::Error> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: own.metadata.uid.clone(),
            resource_version: None,
        });
        match self.objects.delete(&own.name_any(), &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// Lifts the taint that keeps pods from the node until it has a network. It is never set again:
    /// the datapath goes on without its agent.
    async fn network_is_available(&self, node: &Node) -> Result<(), kube::Error> {
        let status = node.status.as_ref();
        let conditions = status.and_then(|it| it.conditions.as_ref());
        let done = conditions.into_iter().flatten().any(|it| {
            it.type_ == "NetworkUnavailable"
                && it.status == "False"
                && it.reason.as_deref() == Some("IpipReady")
        });
        if done {
            return Ok(());
        }
        let now = Time(Timestamp::now());
        let patch = json!({"status": {"conditions": [{
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "IpipReady",
            "message": "The ipip datapath is in sync",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]}});
        let params = PatchParams::default();
        self.nodes
            .patch_status(&node.name_any(), &params, &Patch::Strategic(patch))
            .await
            .map(drop)
    }

    /// An Event on the Node for each thing that an operator must know, once while it is true.
    async fn tell(
        &mut self,
        node: &Node,
        announced: &Result<Announcement, Waiting>,
        left_out: Option<&str>,
        remarks: &[String],
    ) -> Result<(), kube::Error> {
        let mut news: Vec<(&str, String, String)> = Vec::new();
        match announced {
            Ok(announcement) => news.extend(announcement.problems.iter().map(|problem| {
                let action = format!("Read {}", problem.place);
                ("IpipBadValue", action, problem.to_string())
            })),
            Err(waiting) => {
                news.push(("IpipWaiting", "Announce".into(), waiting.to_string()));
            }
        }
        news.extend(left_out.map(|why| {
            let note = format!("no node uses this one: {why}");
            ("IpipLeftOut", "Join".into(), note)
        }));
        let remarks = remarks.iter().cloned();
        news.extend(remarks.map(|note| ("IpipOtherNetwork", "Look".into(), note)));
        // The kubelet's Events have the name as the uid, and `kubectl describe node` looks for it.
        let regarding = ObjectReference {
            uid: node.metadata.name.clone(),
            ..node.object_ref(&())
        };
        let mut told = BTreeSet::new();
        for (reason, action, note) in news {
            if !self.told.contains(&note) {
                let event = Event {
                    type_: EventType::Warning,
                    reason: reason.into(),
                    note: Some(note.chars().take(1000).collect()),
                    action: action.chars().take(128).collect(),
                    secondary: None,
                };
                self.recorder.publish(&event, &regarding).await?;
            }
            told.insert(note);
        }
        self.told = told;
        Ok(())
    }
}

/// Whether the node needs an object of its own instead of `own`: what differs is immutable, or it is
/// that of a Node of the same name that is gone.
fn is_another(own: &IpipNode, node: &Node, spec: &IpipNodeSpec) -> bool {
    let mutable = IpipNodeSpec {
        encapsulation: spec.encapsulation.clone(),
        ..own.spec.clone()
    };
    let owners = own.owner_references();
    mutable != *spec
        || !owners
            .iter()
            .any(|owner| Some(&owner.uid) == node.metadata.uid.as_ref())
}

/// What to write of this node's state; `None` while that is unknown or as it stands already.
fn status(
    own: Option<&IpipNode>,
    announcement: &Announcement,
    view: &View,
    report: &Report,
) -> Option<IpipNodeStatus> {
    let ready_now = report.ready.as_ref()?;
    let problems: Vec<String> = announcement
        .problems
        .iter()
        .map(ToString::to_string)
        .collect();
    let (is_ready, reason, message) = match (&view.left_out, ready_now) {
        (Some(why), _) => (false, "LeftOut", why.clone()),
        (None, Err(why)) => (false, "NotInSync", why.clone()),
        (None, Ok(())) if problems.is_empty() => (true, "InSync", "the datapath is in sync".into()),
        (None, Ok(())) => (true, "BadValue", problems.join("\n")),
    };
    let before = own.and_then(|own| own.status.clone()).unwrap_or_default();
    let mut condition = ready(is_ready, reason, &message, Time(Timestamp::now()));
    let stood = before
        .conditions
        .iter()
        .find(|it| it.type_ == condition.type_);
    if let Some(stood) = stood.filter(|it| it.status == condition.status) {
        condition.last_transition_time = stood.last_transition_time.clone();
    }
    let status = IpipNodeStatus {
        conditions: vec![condition],
        pod_mtu: report.pod_mtu,
        public_endpoint_from: announcement.endpoint_from.clone(),
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
    };
    (status != before).then_some(status)
}
