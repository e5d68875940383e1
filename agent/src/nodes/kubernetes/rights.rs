//! Finds out, with dry runs, whether this agent's token could write the objects of another node.

use super::{
    claim::{IpipClaim, IpipClaimSpec},
    crd::{IpipNode, IpipNodeSpec},
    objects,
    publish::MANAGER,
};
use crate::{nodes::Refusal, send_if_new::send_if_new};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::{fmt::Debug, time::Duration};
use tokio::{sync::watch::Sender, time::sleep};
use tracing::debug;

/// A node that does not exist, and another one for a node of this name.
const NAMES: [&str; 2] = ["ipip-dry-run", "ipip-dry-run-too"];
/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(60);
/// Time between two checks while the token has too many rights.
const RETRY: Duration = Duration::from_secs(5);

/// The token of the agent could write another node's objects.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the token of this agent can write objects of other nodes: the API server accepted a dry run of the {kind} {name}. A stolen token could redirect all traffic, so this agent publishes nothing and follows no changes. The admission policies are missing, do not match the service account of the agents, or are not known to the API server; remedy: kubectl apply -f manifests/base/admission.yaml, on Kubernetes 1.30 or newer, and use a token of that service account instead of an administrator's kubeconfig"
)]
pub struct TooManyRights {
    kind: String,
    name: String,
}

impl TooManyRights {
    /// A dry run of this object was accepted.
    pub fn of(kind: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            name: name.into(),
        }
    }
}

impl From<TooManyRights> for Refusal {
    fn from(too_many: TooManyRights) -> Self {
        Self {
            blocks: true,
            ..Self::because(too_many)
        }
    }
}

/// Tries to write objects of a node that is not `own`. What the API server refuses, for whatever reason, is not shown to
/// be possible.
///
/// # Errors
/// The API server does not answer.
pub async fn check(client: &Client, own: &str) -> Result<Option<TooManyRights>, kube::Error> {
    let node = if own == NAMES[0] { NAMES[1] } else { NAMES[0] };
    let owner = vec![objects::owner(node, "00000000-0000-4000-8000-000000000000")];
    // Addresses for documentation (RFC 5737).
    let spec = IpipNodeSpec {
        internal_ips: vec!["192.0.2.1".into()],
        pod_cidrs: vec!["198.51.100.0/24".into()],
        public_endpoint: None,
        realm: None,
        encapsulation: None,
        probe_key: None,
    };
    let mut object = IpipNode::new(node, spec);
    object.metadata.owner_references = Some(owner.clone());
    let spec = IpipClaimSpec {
        node: node.to_owned(),
        internal_ips: vec!["192.0.2.1".into()],
        ..IpipClaimSpec::default()
    };
    let mut claim = IpipClaim::new(&format!("{node}.0"), spec);
    claim.metadata.owner_references = Some(owner);
    let allowed = is_allowed(&Api::all(client.clone()), &object).await?;
    let allowed = allowed.or(is_allowed(&Api::all(client.clone()), &claim).await?);
    Ok(allowed)
}

async fn is_allowed<K>(api: &Api<K>, object: &K) -> Result<Option<TooManyRights>, kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()> + Serialize,
{
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::apply(MANAGER).force()
    };
    let name = object.name_any();
    let mut body = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    // Fields that are not set.
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| *value != Json::Null);
    }
    match api.patch(&name, &params, &Patch::Apply(body)).await {
        Ok(_) => Ok(Some(TooManyRights::of(K::kind(&()), name))),
        Err(kube::Error::Api(status)) => {
            debug!(%status, name, "the dry run is refused");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Checks now and again, and sends each new result, until the receivers are dropped. While the API server does not answer,
/// the last result stays. The first check comes after a pause, because the agent has just made one to connect.
pub async fn follow(client: Client, own: String, result: Sender<Option<TooManyRights>>) {
    loop {
        let pause = if result.borrow().is_some() {
            RETRY
        } else {
            INTERVAL
        };
        tokio::select! {
            () = result.closed() => return,
            () = sleep(pause) => {}
        }
        match check(&client, &own).await {
            Ok(found) => {
                send_if_new(&result, found);
            }
            Err(error) => debug!(%error, "cannot check the rights of the token"),
        }
    }
}
