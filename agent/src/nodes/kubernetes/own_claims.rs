//! Keeps the claims of this node in step with what it publishes.

use super::{
    claim::{self, IpipClaim},
    crd::IpipNodeSpec,
    objects,
};
use kube::{Api, Client};
use std::collections::BTreeMap;
use tracing::info;

/// The claims of this node, in the API server.
#[derive(Clone, Debug)]
pub struct OwnClaims(Api<IpipClaim>);

impl OwnClaims {
    /// The claims in the API server of `client`.
    pub fn new(client: Client) -> Self {
        Self(Api::all(client))
    }

    /// Creates the claim that `spec` lacks, and makes the Node with this uid the owner of the others. `own` are the claims
    /// as last observed. Call it before `spec` is published, so that no other node can be first.
    ///
    /// # Errors
    /// The API server refuses a request or does not answer.
    pub async fn add(
        &self,
        node: &str,
        uid: &str,
        spec: &IpipNodeSpec,
        own: &BTreeMap<String, IpipClaim>,
    ) -> Result<(), kube::Error> {
        for claim in own.values().filter(|it| !objects::is_owned(*it, uid)) {
            objects::adopt(&self.0, claim, node, uid).await?;
        }
        let Some((name, spec)) = claim::compare(node, spec, own).create else {
            return Ok(());
        };
        let mut claim = IpipClaim::new(&name, spec);
        claim.metadata.owner_references = Some(vec![objects::owner(node, uid)]);
        // It exists if the answer to an earlier request was lost, or it is not observed yet.
        if objects::create(&self.0, &claim).await? {
            info!(name, spec = ?claim.spec, "addresses of this node are claimed");
        }
        Ok(())
    }

    /// Deletes the claims that `spec` does not need. Call it after `spec` is published.
    ///
    /// # Errors
    /// The API server refuses a request or does not answer.
    pub async fn remove(
        &self,
        node: &str,
        spec: &IpipNodeSpec,
        own: &BTreeMap<String, IpipClaim>,
    ) -> Result<(), kube::Error> {
        for name in claim::compare(node, spec, own).delete {
            info!(name, "a claim that this node does not need is deleted");
            objects::delete(&self.0, &own[&name]).await?;
        }
        Ok(())
    }
}
