//! Claims this node's block of the pool. Agents need no leader: the API server creates an object of one name once.
//!
//! A pod CIDR that the node has published stays, because pods use its addresses: also if its block was deleted, or
//! if it lies outside of a pool that was changed. A new claim is used only after a second look at all claims, because
//! blocks of another size or pod CIDRs without a block have other names.

use super::{
    PAGE,
    crd::IpipNode,
    node_spec, objects,
    pod_block::{self, IpipPodBlock},
};
use crate::{
    nodes::inventory::parse_network,
    pod_pool::{PodPool, overlap},
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fmt::Debug, net::Ipv4Addr};
use tracing::{info, warn};

/// A node as the owner of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The name of its Node.
    pub name: &'a str,
    /// The uid of its Node. A Node that is created again has the same name and another uid.
    pub uid: &'a str,
    /// Its InternalIPs.
    pub addresses: &'a [Ipv4Addr],
}

/// The pod CIDRs of this node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claimed {
    /// The ranges.
    pub pod_cidrs: Vec<String>,
    /// What an operator should correct although the ranges are used.
    pub problems: Vec<Problem>,
}

/// This node has no block.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoBlock {
    /// Every block is taken.
    #[error(
        "clusterPodCIDRs: none of the {count} blocks of {pool} is free; remedy: add a network to clusterPodCIDRs, or delete the blocks of nodes that no longer exist (kubectl get ipippodblocks)"
    )]
    NoneFree {
        /// The pool.
        pool: PodPool,
        /// Its number of blocks.
        count: u64,
    },
    /// The pool holds an address of this node.
    #[error(
        "clusterPodCIDRs: {network} holds {address}, an address of the node {node}; remedy: choose networks that hold no node's address"
    )]
    HoldsNode {
        /// The network of the pool.
        network: Ipv4Network,
        /// The address.
        address: Ipv4Addr,
        /// The name of the node.
        node: String,
    },
    /// Another node has claimed an overlapping range at the same time.
    #[error(
        "clusterPodCIDRs: {0} was claimed at the same time as an overlapping range of another node; it is released, and another one is tried"
    )]
    Contested(Ipv4Network),
}

/// The blocks of the cluster, as one agent claims and releases them.
#[derive(Clone, Debug)]
pub struct Blocks {
    pool: PodPool,
    blocks: Api<IpipPodBlock>,
    objects: Api<IpipNode>,
    nodes: Api<Node>,
}

impl Blocks {
    /// The blocks of `pool`.
    pub fn new(client: Client, pool: PodPool) -> Self {
        Self {
            pool,
            blocks: Api::all(client.clone()),
            objects: Api::all(client.clone()),
            nodes: Api::all(client),
        }
    }

    /// Claims what the node lacks and releases what it does not use. `published` are the pod CIDRs in its IpipNode,
    /// and `own` its blocks, both as last observed.
    ///
    /// # Errors
    /// The API server refuses a request or does not answer.
    pub async fn ensure(
        &self,
        owner: Owner<'_>,
        published: &[String],
        own: &BTreeMap<String, IpipPodBlock>,
    ) -> Result<Result<Claimed, NoBlock>, kube::Error> {
        let published: Vec<Ipv4Network> = networks(published);
        if !published.is_empty() {
            return self.keep(owner, &published, own).await.map(Ok);
        }
        let held = own.values().filter_map(range);
        let held = held.filter(|network| self.pool.holds(network)).min();
        let claimed = match held {
            Some(network) => self.confirm(owner, network).await?,
            None => {
                // Before a new one, because a node has one block (policy ipip-agent-one-block).
                self.release(own, &[]).await?;
                self.claim(owner).await?
            }
        };
        Ok(claimed.map(|network| Claimed {
            pod_cidrs: vec![network.to_string()],
            problems: Vec::new(),
        }))
    }

    /// Gives the published pod CIDR its block, and releases the node's other blocks.
    async fn keep(
        &self,
        owner: Owner<'_>,
        published: &[Ipv4Network],
        own: &BTreeMap<String, IpipPodBlock>,
    ) -> Result<Claimed, kube::Error> {
        let mut problems = Vec::new();
        self.release(own, published).await?;
        let mut has_block = own.values().any(|it| is_used(it, published));
        for network in published {
            match own.get(&pod_block::name(network)) {
                Some(block) if objects::is_owned(block, owner.uid) => {}
                Some(block) => {
                    objects::adopt(&self.blocks, block, owner.name, owner.uid).await?;
                }
                // A node has one block (policy ipip-agent-one-block).
                None if has_block => {}
                None if self.create(owner, network).await? => has_block = true,
                None => {
                    let name = pod_block::name(network);
                    let problem = format!(
                        "podCIDRs: {network} is used by this node's pods, but another node has its block; remedy: kubectl delete ipippodblock {name}"
                    );
                    warn!("{problem}");
                    problems.push(Problem::new(Reason::PodCidr, problem));
                }
            }
        }
        Ok(Claimed {
            pod_cidrs: published.iter().map(ToString::to_string).collect(),
            problems,
        })
    }

    /// Releases the node's blocks whose ranges are not `used`.
    async fn release(
        &self,
        own: &BTreeMap<String, IpipPodBlock>,
        used: &[Ipv4Network],
    ) -> Result<(), kube::Error> {
        for block in own.values().filter(|it| !is_used(it, used)) {
            info!(
                cidr = block.spec.cidr,
                "a block that this node does not use is released"
            );
            objects::delete(&self.blocks, block).await?;
        }
        Ok(())
    }

    /// Creates the first free block, in the node's own order.
    async fn claim(&self, owner: Owner<'_>) -> Result<Result<Ipv4Network, NoBlock>, kube::Error> {
        if let Some(fault) = in_pool(owner, &self.pool) {
            return Ok(Err(fault));
        }
        let others = self.others(owner).await?;
        for network in self.pool.blocks_for(owner.name) {
            if others.overlaps(&network) {
                continue;
            }
            if self.create(owner, &network).await? {
                return self.confirm(owner, network).await;
            }
        }
        Ok(Err(NoBlock::NoneFree {
            pool: self.pool.clone(),
            count: self.pool.count(),
        }))
    }

    /// Releases the node's new block `network` if another node has an overlapping range. Of two nodes that claim
    /// at the same time, at least one sees the other's claim here.
    async fn confirm(
        &self,
        owner: Owner<'_>,
        network: Ipv4Network,
    ) -> Result<Result<Ipv4Network, NoBlock>, kube::Error> {
        if !self.others(owner).await?.overlaps(&network) {
            return Ok(Ok(network));
        }
        let fault = NoBlock::Contested(network);
        warn!("{fault}");
        if let Some(block) = self.blocks.get_opt(&pod_block::name(&network)).await?
            && block.spec.node == owner.name
        {
            objects::delete(&self.blocks, &block).await?;
        }
        Ok(Err(fault))
    }

    /// Whether the node has the block now. Another node may have created it first.
    async fn create(&self, owner: Owner<'_>, network: &Ipv4Network) -> Result<bool, kube::Error> {
        let block = pod_block::block(network, owner.name, owner.uid);
        if objects::create(&self.blocks, &block).await? {
            info!(%network, "a block is claimed for this node's pods");
            return Ok(true);
        }
        // It is this node's own if the answer to an earlier request was lost.
        let found = self.blocks.get_opt(&block.name_any()).await?;
        Ok(found.is_some_and(|it| it.spec.node == owner.name))
    }

    /// The ranges that the other nodes have now. The API server answers with its latest state.
    async fn others(&self, owner: Owner<'_>) -> Result<Others, kube::Error> {
        let mut blocks = Vec::new();
        each(&self.blocks, |block| {
            blocks.extend(range(&block).map(|it| (it, block.spec.node)))
        })
        .await?;
        let mut claimed = Vec::new();
        each(&self.objects, |object| {
            let ranges = networks(&object.spec.pod_cidrs).into_iter();
            let in_pool = ranges.filter(|it| self.pool.overlapping(it).is_some());
            let name = object.name_any();
            claimed.extend(in_pool.map(|it| (it, name.clone())));
        })
        .await?;
        // Ranges of nodes that use no block. They are compared with the Nodes, because a false claim must not keep others
        // from their blocks.
        claimed.retain(|it| it.1 != owner.name && !blocks.contains(it));
        let mut ranges: Vec<Ipv4Network> = Vec::new();
        for (network, name) in claimed {
            let node = self.nodes.get_opt(&name).await?;
            ranges.extend(node.and_then(|it| {
                node_spec::networks(&it)
                    .contains(&network)
                    .then_some(network)
            }));
        }
        let of_others = blocks.into_iter().filter(|(_, node)| node != owner.name);
        ranges.extend(of_others.map(|(network, _)| network));
        Ok(Others(ranges))
    }
}

/// Lists all objects page by page, so that a large list is never in memory as a whole.
async fn each<K>(api: &Api<K>, mut take: impl FnMut(K)) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        page.items.into_iter().for_each(&mut take);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(()),
        }
    }
}

/// Ranges that a new block must not touch. Addresses of other nodes are not among them: no node uses one that lies in the
/// pool, and no node may keep others from a block by claiming one.
#[derive(Debug)]
struct Others(Vec<Ipv4Network>);

impl Others {
    fn overlaps(&self, network: &Ipv4Network) -> bool {
        self.0.iter().any(|it| overlap(it, network))
    }
}

/// The address of this node that lies in `pool`.
fn in_pool(owner: Owner<'_>, pool: &PodPool) -> Option<NoBlock> {
    owner.addresses.iter().find_map(|address| {
        Some(NoBlock::HoldsNode {
            network: *pool.overlapping(&Ipv4Network::from(*address))?,
            address: *address,
            node: owner.name.to_owned(),
        })
    })
}

/// The range of a block. The API server validates its form.
fn range(block: &IpipPodBlock) -> Option<Ipv4Network> {
    parse_network(&block.spec.cidr).ok()
}

fn networks(texts: &[String]) -> Vec<Ipv4Network> {
    texts
        .iter()
        .filter_map(|it| parse_network(it).ok())
        .collect()
}

fn is_used(block: &IpipPodBlock, used: &[Ipv4Network]) -> bool {
    range(block).is_some_and(|it| used.contains(&it))
}
