//! The Kubernetes API as node source: this node's own Node, the IpipNode and IpipClaims of every node, and the blocks of
//! the pool if there is one. The agent never watches all Nodes, because their heartbeats would reach every agent.

pub mod api_server;
pub mod blocks;
pub mod claim;
pub mod crd;
pub mod index;
pub mod node_spec;
pub mod pod_block;

mod api_address;
mod backing;
mod client;
mod cluster_ranges;
mod deletions;
mod gone_nodes;
mod learned_endpoint;
mod objects;
mod own_claims;
mod publish;
mod rights;
mod watches;

use super::{NodeSource, Refusal, Report, Update};
use crate::{config::Config, probe_key::PublicKey, requirements};
use backing::Backings;
use blocks::Blocks;
use claim::IpipClaim;
use crd::IpipNode;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use pod_block::IpipPodBlock;
use publish::{OwnObjects, Settings, publish};
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    sync::{
        mpsc::{self, Sender},
        watch,
    },
    time::sleep,
};
use tracing::info;
use watches::{Read, Watches};

/// Lifetime of a watch request in seconds. A dead connection that TCP does not detect is replaced after this time.
const WATCH_SECONDS: u32 = 150;
/// Objects in one page of a list, so that a large list is never in memory as a whole.
const PAGE: u32 = 250;
/// Longest time between attempts to reach the API server.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The Kubernetes API, as the agent of one node reads it and writes to it.
pub struct KubernetesSource {
    config: Config,
    probe_key: Option<PublicKey>,
    report: watch::Receiver<Report>,
}

impl KubernetesSource {
    /// The source for the node that `config` names; it publishes the node's probe key, and `report` in the node's status.
    pub fn new(
        config: Config,
        probe_key: Option<PublicKey>,
        report: watch::Receiver<Report>,
    ) -> Self {
        Self {
            config,
            probe_key,
            report,
        }
    }

    /// Retries until there is a client of an API server that answers and is new enough; returns it and the server's host.
    /// `None` if `updates` is closed.
    async fn connect(&self, updates: &Sender<Update>) -> Option<(Client, String)> {
        let mut backoff = DefaultBackoff::default();
        let mut published = None;
        loop {
            let refusal = match self.try_connect().await {
                Ok(client) => return Some(client),
                Err(refusal) => refusal,
            };
            if published.as_ref() != Some(&refusal) {
                updates.send(Err(refusal.clone())).await.ok()?;
                published = Some(refusal);
            }
            tokio::select! {
                () = updates.closed() => return None,
                () = sleep(backoff.next().unwrap_or(MAX_BACKOFF)) => {}
            }
        }
    }

    async fn try_connect(&self) -> Result<(Client, String), Refusal> {
        let (config, why) = api_server::client_config(&self.config)
            .await
            .map_err(Refusal::because)?;
        let url = config.cluster_url.to_string();
        let host = config.cluster_url.host().unwrap_or_default().to_owned();
        let client = client::client(config).map_err(Refusal::because)?;
        let no_answer = |error| {
            Refusal::because(format!(
                "the API server does not answer: {error}; its address is {url}: {why}"
            ))
        };
        let version = match client.apiserver_version().await {
            Ok(version) => {
                let version = version.git_version;
                requirements::kubernetes(&version).map_err(Refusal::because)?;
                version
            }
            // RBAC may forbid `/version`, which `system:public-info-viewer` allows by default.
            Err(error @ (kube::Error::Api(_) | kube::Error::SerdeError(_))) => {
                format!("not readable: {error}")
            }
            Err(error) => return Err(no_answer(error)),
        };
        let name = &self.config.node_name;
        if let Some(too_many) = rights::check(&client, name).await.map_err(no_answer)? {
            return Err(too_many.into());
        }
        info!(url, why, version, "connected to the API server");
        Ok((client, host))
    }
}

impl NodeSource for KubernetesSource {
    async fn watch(self, updates: Sender<Update>) {
        let Some((client, host)) = self.connect(&updates).await else {
            return;
        };
        let (result, too_many_rights) = watch::channel(None);
        let name = self.config.node_name.clone();
        tokio::spawn(rights::follow(client.clone(), name.clone(), result));
        let (addresses, api_server) = watch::channel(BTreeSet::new());
        tokio::spawn(api_address::follow(host, addresses));
        let (ranges, fence) = watch::channel(None);
        tokio::spawn(cluster_ranges::follow(
            client.clone(),
            self.config.clone(),
            ranges,
        ));
        let (requests, requested) = mpsc::unbounded_channel();
        let (replies, answers) = mpsc::unbounded_channel();
        tokio::spawn(backing::read(client.clone(), requested, replies));
        let (own, observed) = watch::channel(OwnObjects::default());
        let pool = self.config.pod_pool();
        let (no_block, why_no_block) = watch::channel(None);
        let why_no_block = pool.is_some().then_some(why_no_block);
        let blocks = pool.map(|pool| Blocks::new(client.clone(), pool));
        tokio::spawn(publish(
            client.clone(),
            Settings {
                probe_key: self.probe_key,
                learned_endpoint: self.config.learned_public_endpoint,
            },
            blocks,
            no_block,
            too_many_rights.clone(),
            observed,
            self.report,
        ));
        let (held, held_names) = watch::channel(BTreeSet::new());
        let (gone_sender, gone) = mpsc::channel(1);
        let all_nodes = Api::<Node>::all(client.clone());
        tokio::spawn(gone_nodes::find(all_nodes.clone(), held_names, gone_sender));
        let settings = || {
            watcher::Config::default()
                .timeout(WATCH_SECONDS)
                .page_size(PAGE)
        };
        let read = Read {
            api_server,
            fence,
            answers,
            gone,
            too_many_rights,
        };
        let own_node = settings().fields(&format!("metadata.name={name}"));
        let nodes = watcher(all_nodes, own_node).default_backoff();
        let objects = watcher(Api::<IpipNode>::all(client.clone()), settings()).default_backoff();
        let claims = watcher(Api::<IpipClaim>::all(client.clone()), settings()).default_backoff();
        let blocks = watcher(Api::<IpipPodBlock>::all(client), settings()).default_backoff();
        Watches::new(
            name,
            Backings::new(requests),
            why_no_block,
            own,
            held,
            updates,
        )
        .run((nodes, objects, claims, blocks), read)
        .await;
    }
}
