//! What writing the kinds of this project has in common.

use super::publish::MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::fmt::Debug;
use tracing::info;

/// The Node with this name and uid as the owner of an object, which is deleted together with it.
pub fn owner(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        block_owner_deletion: None,
        controller: None,
    }
}

/// Whether `object` is deleted together with the Node with this uid, and with no earlier Node of that name.
pub fn is_owned<K: Resource>(object: &K, uid: &str) -> bool {
    let owners = object.owner_references();
    owners.len() == 1 && owners[0].uid == uid
}

/// Creates `object`. Returns whether there was none of its name.
///
/// # Errors
/// The API server refuses the request or does not answer.
pub async fn create<K>(api: &Api<K>, object: &K) -> Result<bool, kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let params = PostParams {
        field_manager: Some(MANAGER.into()),
        ..PostParams::default()
    };
    match api.create(&params, object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
        created => created.map(|_| true),
    }
}

/// Makes the Node as it exists now the owner of an object of its node. Otherwise the object would be deleted together with
/// an earlier Node of the same name.
///
/// # Errors
/// The API server refuses the request or does not answer.
pub async fn adopt<K>(api: &Api<K>, object: &K, node: &str, uid: &str) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource,
{
    let name = object.name_any();
    info!(name, "the Node was created again: its object is kept");
    let patch = json!({"metadata": {
        "uid": object.meta().uid,
        "ownerReferences": [owner(node, uid)],
    }});
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    match api.patch(&name, &params, &Patch::Merge(patch)).await {
        // It has just been deleted; that is observed next.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        patched => patched.map(drop),
    }
}

/// Deletes `object`, unless another one has replaced it.
///
/// # Errors
/// The API server refuses the request or does not answer.
pub async fn delete<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + Debug + DeserializeOwned + Resource,
{
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: object.meta().uid.clone(),
        resource_version: None,
    });
    match api.delete(&object.name_any(), &params).await {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        deleted => deleted.map(drop),
    }
}
