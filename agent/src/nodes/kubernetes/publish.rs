//! Publishes this node in the Kubernetes API: its IpipNode, a condition of its Node, and Events.

use super::{
    blocks::{Blocks, Claimed, Owner},
    claim::IpipClaim,
    crd::{IpipNode, IpipNodeSpec, IpipNodeStatus, MAX_LAN_CONFLICTS, ready},
    learned_endpoint,
    node_spec::{self, Derived, Incomplete},
    objects,
    own_claims::OwnClaims,
    pod_block::IpipPodBlock,
    rights::TooManyRights,
};
use crate::{
    config::LearnedEndpoint, nodes::Report, probe_key::PublicKey, problems::Problem,
    send_if_new::send_if_new,
};
use k8s_openapi::{
    api::core::v1::{Node, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        utils::Backoff,
        watcher::DefaultBackoff,
    },
};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::watch::{Receiver, Sender},
    time::sleep,
};
use tracing::{info, warn};

/// The field manager of server-side apply.
pub const MANAGER: &str = "ipip-agent";
/// Minimum time between writes, because every agent of the cluster receives them.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// This node's objects, as last observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnObjects {
    /// Its Node.
    pub node: Option<Node>,
    /// Its IpipNode.
    pub object: Option<IpipNode>,
    /// Its claims, by name.
    pub claims: BTreeMap<String, IpipClaim>,
    /// Its blocks, by name.
    pub blocks: BTreeMap<String, IpipPodBlock>,
    /// Whether all have been listed; until then absent objects may exist.
    pub known: bool,
}

/// What is published beside the fields of the Node.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The public key of this node.
    pub probe_key: Option<PublicKey>,
    /// What becomes of the public address that peers see.
    pub learned_endpoint: LearnedEndpoint,
}

/// Compares the objects in `own` with the state in `report` and writes the differences, until a sender is dropped.
/// If there is a pool, the pod CIDRs come from `blocks`, and `no_block` is the
/// reason why the node has none. With `too_many_rights` it writes nothing.
pub async fn publish(
    client: Client,
    settings: Settings,
    blocks: Option<Blocks>,
    no_block: Sender<Option<String>>,
    mut too_many_rights: Receiver<Option<TooManyRights>>,
    mut own: Receiver<OwnObjects>,
    mut report: Receiver<Report>,
) {
    let reporter = Reporter {
        controller: "ipip.dev/agent".into(),
        instance: None,
    };
    let mut publisher = Publisher {
        nodes: Api::all(client.clone()),
        objects: Api::all(client.clone()),
        claims: OwnClaims::new(client.clone()),
        recorder: Recorder::new(client, reporter),
        notes: BTreeSet::new(),
        probe_key: settings.probe_key.map(|key| key.to_string()),
        learned_endpoint: settings.learned_endpoint,
        is_pruned: false,
        blocks,
        no_block,
    };
    let mut backoff = DefaultBackoff::default();
    loop {
        while too_many_rights.borrow_and_update().is_some() {
            if too_many_rights.changed().await.is_err() {
                return;
            }
        }
        let objects = own.borrow_and_update().clone();
        let state = report.borrow_and_update().clone();
        match publisher.write(&objects, &state).await {
            Ok(()) => {
                // A block that becomes free changes none of the observed objects.
                let retry_in = match &*publisher.no_block.borrow() {
                    Some(_) => backoff.next(),
                    None => {
                        backoff.reset();
                        None
                    }
                };
                sleep(MIN_INTERVAL).await;
                tokio::select! {
                    changed = own.changed() => if changed.is_err() { return },
                    changed = report.changed() => if changed.is_err() { return },
                    () = sleep(retry_in.unwrap_or_default()), if retry_in.is_some() => {}
                }
            }
            Err(error) => {
                let retry_in = backoff.next().unwrap_or(MIN_INTERVAL);
                warn!(%error, ?retry_in, "cannot publish this node in the Kubernetes API");
                sleep(retry_in).await;
                // `has_changed` fails if the watches have ended.
                if own.has_changed().is_err() {
                    return;
                }
            }
        }
    }
}

struct Publisher {
    nodes: Api<Node>,
    objects: Api<IpipNode>,
    claims: OwnClaims,
    recorder: Recorder,
    /// Notes of the Events whose cause persists; they are not published again.
    notes: BTreeSet<String>,
    /// The public key of this node, if it has one.
    probe_key: Option<String>,
    /// What becomes of the public address that peers see.
    learned_endpoint: LearnedEndpoint,
    /// Whether the API server has removed it, because the CRD is that of an older version.
    is_pruned: bool,
    /// The pool, if the pod CIDRs come from one.
    blocks: Option<Blocks>,
    /// The reason why this node has no block, if there is a pool.
    no_block: Sender<Option<String>>,
}

impl Publisher {
    async fn write(&mut self, own: &OwnObjects, report: &Report) -> Result<(), kube::Error> {
        let (Some(node), true) = (&own.node, own.known) else {
            return Ok(());
        };
        let object = own.object.as_ref();
        let claimed = match &self.blocks {
            Some(blocks) => Some(claim(blocks, node, own).await?),
            None => None,
        };
        let no_block = claimed.as_ref().and_then(|it| it.as_ref().err().cloned());
        send_if_new(&self.no_block, no_block);
        let pod_cidrs = claimed.as_ref().map(|it| match it {
            Ok(claimed) => Ok(&*claimed.pod_cidrs),
            Err(why) => Err(why.clone()),
        });
        let derived = node_spec::derive(node, pod_cidrs, object.map(|object| &object.spec));
        let claimed = claimed.and_then(Result::ok).unwrap_or_default();
        let problems = [&*claimed.problems, &report.problems].concat();
        self.publish_events(node, &derived, &problems).await?;
        let Ok(mut derived) = derived else {
            return Ok(());
        };
        derived.spec.probe_key.clone_from(&self.probe_key);
        if self.learned_endpoint == LearnedEndpoint::Use {
            learned_endpoint::add(&mut derived, node, object, &report.learned_endpoint);
        }
        if object.is_some_and(|it| it.metadata.deletion_timestamp.is_some()) {
            // It is written again when it is gone.
            return Ok(());
        }
        let (name, spec) = (node.name_any(), &derived.spec);
        let uid = node.metadata.uid.as_deref().unwrap_or_default();
        self.claims.add(&name, uid, spec, &own.claims).await?;
        let is_current = |it: &IpipNode| it.spec == *spec && objects::is_owned(it, uid);
        if !object.is_some_and(is_current) {
            let object = self.apply(&name, uid, spec).await?;
            if object.spec.probe_key != spec.probe_key && !self.is_pruned {
                self.is_pruned = true;
                warn!(
                    "paths to this node are not probed, because the API server removes spec.probeKey; remedy: kubectl apply --server-side -f manifests/base/crd.yaml"
                );
            }
            if own.object.as_ref().is_none_or(|it| it.spec != object.spec) {
                info!(spec = ?object.spec, "the IpipNode of this node is written");
            }
        }
        self.claims.remove(&name, spec, &own.claims).await?;
        if let Some(status) = status(&derived, own, report) {
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
        match &report.ready {
            Some(Ok(())) => self.publish_network_available(node).await,
            _ => Ok(()),
        }
    }

    async fn apply(
        &self,
        name: &str,
        uid: &str,
        spec: &IpipNodeSpec,
    ) -> Result<IpipNode, kube::Error> {
        let patch = json!({
            "apiVersion": IpipNode::api_version(&()),
            "kind": IpipNode::kind(&()),
            "metadata": {"name": name, "ownerReferences": [objects::owner(name, uid)]},
            "spec": spec,
        });
        let params = PatchParams::apply(MANAGER).force();
        self.objects
            .patch(name, &params, &Patch::Apply(patch))
            .await
    }

    /// Sets the condition `NetworkUnavailable` to False; Kubernetes then removes the taint that keeps
    /// pods from the node. It is never set to True again, because the datapath works without its agent.
    async fn publish_network_available(&self, node: &Node) -> Result<(), kube::Error> {
        let status = node.status.as_ref();
        let conditions = status.and_then(|it| it.conditions.as_ref());
        let is_set = conditions.into_iter().flatten().any(|it| {
            it.type_ == "NetworkUnavailable"
                && it.status == "False"
                && it.reason.as_deref() == Some("IpipReady")
        });
        if is_set {
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

    /// Publishes an Event on the Node for each fault that an operator should correct. While a fault persists, its
    /// Event is not published again.
    async fn publish_events(
        &mut self,
        node: &Node,
        derived: &Result<Derived, Incomplete>,
        problems: &[Problem],
    ) -> Result<(), kube::Error> {
        let mut faults: Vec<(String, String, String)> = Vec::new();
        match derived {
            Ok(derived) => faults.extend(derived.invalid.iter().map(|value| {
                let action = format!("Read {}", value.field);
                ("IpipBadValue".into(), action, value.to_string())
            })),
            Err(incomplete) => {
                faults.push((
                    "IpipWaiting".into(),
                    "Publish".into(),
                    incomplete.to_string(),
                ));
            }
        }
        faults.extend(problems.iter().map(|Problem { reason, text }| {
            let reason = format!("Ipip{}", reason.name());
            (reason, "Reconcile".into(), text.clone())
        }));
        // `kubectl describe node` selects Events by this uid: the kubelet puts the Node's name there.
        let regarding = ObjectReference {
            uid: node.metadata.name.clone(),
            ..node.object_ref(&())
        };
        let mut notes = BTreeSet::new();
        for (reason, action, note) in faults {
            if !self.notes.contains(&note) {
                let event = Event {
                    type_: EventType::Warning,
                    reason,
                    note: Some(note.chars().take(1000).collect()),
                    action: action.chars().take(128).collect(),
                    secondary: None,
                };
                self.recorder.publish(&event, &regarding).await?;
            }
            notes.insert(note);
        }
        self.notes = notes;
        Ok(())
    }
}

/// The node's pod CIDRs in the pool, or the reason why it has none.
async fn claim(
    blocks: &Blocks,
    node: &Node,
    own: &OwnObjects,
) -> Result<Result<Claimed, String>, kube::Error> {
    let published = own.object.as_ref();
    let published = published.map_or(&[][..], |it| &*it.spec.pod_cidrs);
    let owner = Owner {
        name: &node.name_any(),
        uid: node.metadata.uid.as_deref().unwrap_or_default(),
        addresses: &node_spec::internal_ips(node),
    };
    let claimed = blocks.ensure(owner, published, &own.blocks).await?;
    Ok(claimed.map_err(|why| why.to_string()))
}

/// The status to write; `None` while the agent's state is unknown, and if the object has it already.
fn status(derived: &Derived, own: &OwnObjects, report: &Report) -> Option<IpipNodeStatus> {
    let ready_now = report.ready.as_ref()?;
    let invalid = derived.invalid.iter();
    let invalid = invalid.map(|value| ("BadValue", value.to_string()));
    let problems = report.problems.iter();
    let problems = problems.map(|it| (it.reason.name(), it.text.clone()));
    let (is_ready, reason, message) = match ready_now {
        Err(why) => {
            let mut blocking = report.problems.iter().filter(|it| it.reason.blocks());
            let reason = blocking.next().map_or("NotInSync", |it| it.reason.name());
            (false, reason, why.clone())
        }
        Ok(()) => {
            let (reasons, texts): (Vec<&str>, Vec<String>) = invalid.chain(problems).unzip();
            match reasons.first() {
                Some(reason) => (true, *reason, texts.join("\n")),
                None => (true, "InSync", "the datapath is in sync".into()),
            }
        }
    };
    let object = own.object.as_ref();
    let before = object.and_then(|it| it.status.clone()).unwrap_or_default();
    let mut condition = ready(is_ready, reason, &message, Time(Timestamp::now()));
    let last = before
        .conditions
        .iter()
        .find(|it| it.type_ == condition.type_);
    if let Some(last) = last.filter(|it| it.status == condition.status) {
        condition.last_transition_time = last.last_transition_time.clone();
    }
    let status = IpipNodeStatus {
        conditions: vec![condition],
        pod_mtu: report.pod_mtu,
        lan_conflicts: report
            .lan_conflicts
            .iter()
            .take(MAX_LAN_CONFLICTS)
            .map(ToString::to_string)
            .collect(),
        public_endpoint_from: derived.endpoint_from.clone(),
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
    };
    (status != before).then_some(status)
}
