//! Claims this node's block of the pool. Agents need no leader: the API server creates an object of one name once.
//!
//! A pod CIDR that the node has published stays, because pods use its addresses: also if its block was deleted, or
//! if it lies outside of a pool that was changed. A new claim is used only after a second look at all claims, because
//! blocks of another size or pod CIDRs without a block have other names.

use super::{
    PAGE,
    crd::IpipNode,
    objects,
    pod_block::{self, IpipPodBlock},
    publish::MANAGER,
};
use crate::{
    nodes::inventory::{parse_address, parse_network},
    pod_pool::{PodPool, overlap},
    problems::{Problem, Reason},
};
use ipnetwork::Ipv4Network;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
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
    /// The pool holds the address of a node.
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
    nodes: Api<IpipNode>,
}

impl Blocks {
    /// The blocks of `pool`.
    pub fn new(client: Client, pool: PodPool) -> Self {
        Self {
            pool,
            blocks: Api::all(client.clone()),
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
            None => self.claim(owner).await?,
        };
        Ok(claimed.map(|network| Claimed {
            pod_cidrs: vec![network.to_string()],
            problems: Vec::new(),
        }))
    }

    /// Gives every published pod CIDR its block, and releases the node's other blocks.
    async fn keep(
        &self,
        owner: Owner<'_>,
        published: &[Ipv4Network],
        own: &BTreeMap<String, IpipPodBlock>,
    ) -> Result<Claimed, kube::Error> {
        let mut problems = Vec::new();
        for network in published {
            match own.get(&pod_block::name(network)) {
                Some(block) if objects::is_owned(block, owner.uid) => {}
                Some(block) => {
                    objects::adopt(&self.blocks, block, owner.name, owner.uid).await?;
                }
                None if self.create(owner, network).await? => {}
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
        let surplus = |it: &&IpipPodBlock| range(it).is_none_or(|it| !published.contains(&it));
        for block in own.values().filter(surplus) {
            info!(
                cidr = block.spec.cidr,
                "a block that this node does not use is released"
            );
            objects::delete(&self.blocks, block).await?;
        }
        Ok(Claimed {
            pod_cidrs: published.iter().map(ToString::to_string).collect(),
            problems,
        })
    }

    /// Creates the first free block, in the node's own order.
    async fn claim(&self, owner: Owner<'_>) -> Result<Result<Ipv4Network, NoBlock>, kube::Error> {
        let others = self.others(owner).await?;
        if let Some(fault) = others.in_pool(&self.pool) {
            return Ok(Err(fault));
        }
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
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        match self.blocks.create(&params, &block).await {
            Ok(_) => {
                info!(%network, "a block is claimed for this node's pods");
                Ok(true)
            }
            // It is this node's own if the answer to an earlier request was lost.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let found = self.blocks.get_opt(&block.name_any()).await?;
                Ok(found.is_some_and(|it| it.spec.node == owner.name))
            }
            Err(error) => Err(error),
        }
    }

    /// What the other nodes have now. The API server answers with its latest state.
    async fn others(&self, owner: Owner<'_>) -> Result<Others, kube::Error> {
        let own = owner.addresses.iter();
        let mut others = Others {
            ranges: Vec::new(),
            addresses: own.map(|it| (*it, owner.name.to_owned())).collect(),
        };
        each(&self.blocks, |block| {
            if block.spec.node != owner.name {
                others.ranges.extend(range(&block));
            }
        })
        .await?;
        each(&self.nodes, |node| {
            let name = node.name_any();
            if name != owner.name {
                others.ranges.extend(networks(&node.spec.pod_cidrs));
            }
            let addresses = node.spec.internal_ips.iter();
            let addresses = addresses.chain(&node.spec.public_endpoint);
            let addresses = addresses.filter_map(|it| parse_address(it).ok());
            let addresses = addresses.map(|it| (it, name.clone()));
            others.addresses.extend(addresses);
        })
        .await?;
        Ok(others)
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

/// Ranges and addresses that a new block must not touch.
#[derive(Debug)]
struct Others {
    ranges: Vec<Ipv4Network>,
    addresses: Vec<(Ipv4Addr, String)>,
}

impl Others {
    fn overlaps(&self, network: &Ipv4Network) -> bool {
        self.ranges.iter().any(|it| overlap(it, network))
    }

    /// The address of a node that lies in `pool`.
    fn in_pool(&self, pool: &PodPool) -> Option<NoBlock> {
        self.addresses.iter().find_map(|(address, node)| {
            Some(NoBlock::HoldsNode {
                network: *pool.overlapping(&Ipv4Network::from(*address))?,
                address: *address,
                node: node.clone(),
            })
        })
    }
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
