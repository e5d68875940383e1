//! The own pool of pod CIDRs (`clusterPodCIDRs`), on Nodes without `spec.podCIDRs`.

use crate::{
    agent::{
        READY, clean, field, next_second, node, object, published, set_internal_ips, wait_field,
    },
    claims::routes,
};
use anyhow::{Context, Result, bail, ensure};
use ipip_agent::nodes::kubernetes::blocks::{Blocks, NoBlock, Owner};
use ipip_agent::pod_pool::{PodPool, overlap};
use ipip_lab::{
    api_agent::ApiAgent,
    api_server::{ADDRESS, ApiServer},
};
use ipip_testkit::{harness::Test, tests, wait};
use ipnetwork::Ipv4Network;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{collections::BTreeMap, sync::Barrier, time::Duration};

pub const TESTS: &[Test<ApiServer>] = tests![
    claimers_that_start_at_once_get_disjoint_blocks_also_if_their_block_sizes_differ,
    the_last_free_block_goes_to_one_of_many_claimers,
    an_agent_publishes_its_block_and_keeps_it_through_restarts_and_its_deletion,
    an_agent_waits_for_a_free_block_and_readyz_and_an_event_say_so,
    a_range_outside_of_a_changed_pool_stays_with_a_warning_until_the_ipipnode_is_deleted,
    a_node_that_is_created_again_keeps_its_block,
    a_node_that_had_a_pod_cidr_before_the_pool_keeps_it,
    a_pool_that_holds_the_nodes_own_address_is_refused_with_its_remedy,
    false_claims_in_the_pool_keep_no_node_from_a_block,
    a_node_cannot_use_the_block_of_another_node,
    an_agent_with_a_pool_on_a_server_without_the_kind_names_the_remedy,
];

const CLAIMERS: usize = 24;
const CIDRS: &str = "{.spec.podCIDRs}";

/// Creates `count` Nodes and, for each, a client with the token of its agent.
struct Claimers<'a> {
    server: &'a ApiServer,
    /// Name, uid and kubeconfig of each node.
    nodes: Vec<(String, String, Kubeconfig)>,
}

impl<'a> Claimers<'a> {
    fn create(server: &'a ApiServer, count: usize) -> Result<Self> {
        let names: Vec<String> = (0..count)
            .map(|number| format!("claimer-{number}"))
            .collect();
        let objects = names
            .iter()
            .map(|name| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"));
        server.apply(&objects.collect::<String>())?;
        let nodes = names.into_iter().map(|name| {
            let token = server.agent_token(&name)?;
            let path = server.kubeconfig(&format!("{name}.conf"), &token)?;
            let uid = field(server, "node", &name, "{.metadata.uid}")?;
            Ok((name, uid, Kubeconfig::read_from(path)?))
        });
        let nodes = nodes.collect::<Result<_>>()?;
        Ok(Self { server, nodes })
    }

    /// Runs all claimers at the same time, each in a thread of its own, until each has an answer that is not
    /// [`NoBlock::Contested`]. `pool` is the pool of the claimer with this number.
    fn claim(
        &self,
        pool: impl Fn(usize) -> PodPool + Sync,
    ) -> Result<BTreeMap<String, Result<Vec<String>, NoBlock>>> {
        let barrier = Barrier::new(self.nodes.len());
        std::thread::scope(|scope| {
            let run = |number: usize| {
                let (name, uid, kubeconfig) = &self.nodes[number];
                let (barrier, pool) = (&barrier, pool(number));
                scope.spawn(move || {
                    let claim = claim(kubeconfig.clone(), pool, name, uid, barrier);
                    let claimed = self.server.host().enter(|| {
                        tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()?
                            .block_on(claim)
                    })?;
                    claimed.map(|claimed| (name.clone(), claimed))
                })
            };
            let threads: Vec<_> = (0..self.nodes.len()).map(run).collect();
            let results = threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.collect()
        })
    }
}

async fn claim(
    kubeconfig: Kubeconfig,
    pool: PodPool,
    name: &str,
    uid: &str,
    barrier: &Barrier,
) -> Result<Result<Vec<String>, NoBlock>> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    let blocks = Blocks::new(Client::try_from(config)?, pool);
    let owner = Owner {
        name,
        uid,
        addresses: &[],
    };
    barrier.wait();
    for attempt in 1..200 {
        let claimed = blocks.ensure(owner, &[], &BTreeMap::new()).await?;
        match claimed {
            Err(NoBlock::Contested(_)) => {}
            claimed => return Ok(claimed.map(|claimed| claimed.pod_cidrs)),
        }
        // An agent's pauses are random, too.
        let spread = u64::from(uid.as_bytes()[attempt % uid.len()]);
        tokio::time::sleep(Duration::from_millis(spread * attempt as u64 / 4)).await;
    }
    bail!("{name} found no block in 200 attempts")
}

fn pool(network: &str, mask_size: u8) -> PodPool {
    let network: Ipv4Network = network.parse().expect("a constant network");
    PodPool::new(&[network], mask_size).expect("the pool is not empty")
}

/// The blocks as the API server has them: range and node.
fn blocks(server: &ApiServer) -> Result<BTreeMap<Ipv4Network, String>> {
    let path = "{range .items[*]}{.spec.cidr} {.spec.node}{\"\\n\"}{end}";
    let printed = server.kubectl(&["get", "ipb", "-o", &format!("jsonpath={path}")])?;
    let block = |line: &str| {
        let (cidr, node) = line.split_once(' ').context("a block without a node")?;
        Ok((cidr.parse()?, node.to_owned()))
    };
    printed.lines().map(block).collect()
}

fn claimers_that_start_at_once_get_disjoint_blocks_also_if_their_block_sizes_differ(
    server: &ApiServer,
) -> Result<()> {
    let claimers = Claimers::create(server, CLAIMERS)?;
    // 8 claimers of a /24 and 16 of a /25 share 32 blocks of /24.
    let size = |number| if number < CLAIMERS / 3 { 24 } else { 25 };
    let claimed = claimers.claim(|number| pool("10.77.0.0/19", size(number)))?;
    let found = blocks(server)?;
    ensure!(found.len() == CLAIMERS, "{found:?}");
    for (name, claimed) in &claimed {
        let cidrs = claimed
            .as_ref()
            .map_err(|why| anyhow::anyhow!("{name}: {why}"))?;
        let cidr: Ipv4Network = cidrs[0].parse()?;
        ensure!(
            found.get(&cidr) == Some(name),
            "{name} has {cidr}: {found:?}"
        );
    }
    let ranges: Vec<_> = found.keys().collect();
    for (n, one) in ranges.iter().enumerate() {
        for other in &ranges[n + 1..] {
            ensure!(!overlap(one, other), "{one} and {other}: {found:?}");
        }
    }
    clean(server)
}

fn the_last_free_block_goes_to_one_of_many_claimers(server: &ApiServer) -> Result<()> {
    let claimers = Claimers::create(server, CLAIMERS)?;
    let claimed = claimers.claim(|_| pool("10.77.0.0/24", 24))?;
    let winners = claimed.values().filter(|it| it.is_ok()).count();
    ensure!(winners == 1, "{claimed:?}");
    let all_taken = |it: &Result<_, NoBlock>| matches!(it, Ok(_) | Err(NoBlock::NoneFree { .. }));
    ensure!(claimed.values().all(all_taken), "{claimed:?}");
    clean(server)
}

const POOL: [&str; 2] = ["--cluster-pod-cidrs", "10.77.0.0/22"];

fn an_agent_publishes_its_block_and_keeps_it_through_restarts_and_its_deletion(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(200, "ok")?;
    let cidrs = field(server, "ipn", "a1", CIDRS)?;
    let found = blocks(server)?;
    ensure!(found.len() == 1, "{found:?}");
    let (range, owner) = found.first_key_value().context("no block")?;
    ensure!(
        cidrs == format!("[\"{range}\"]") && owner == "a1",
        "{cidrs}: {found:?}"
    );
    ensure!(range.prefix() == 24, "{range}");
    let name = range.to_string().replace(['.', '/'], "-");
    let uid = "{.metadata.ownerReferences[0].uid}";
    ensure!(field(server, "ipb", &name, uid)? == field(server, "node", "a1", "{.metadata.uid}")?);
    let created = field(server, "ipn", "a1", "{.metadata.uid}")?;

    server.kubectl(&["delete", "ipb", &name])?;
    wait::until("the block exists again", || Ok(blocks(server)? == found))?;
    drop(agent);
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(200, "ok")?;
    ensure!(blocks(server)? == found, "{:?}", blocks(server)?);
    ensure!(
        field(server, "ipn", "a1", "{.metadata.uid}")? == created,
        "a new IpipNode"
    );

    // The object that others read is lost, but the claim is not.
    server.kubectl(&["delete", "ipn", "a1"])?;
    wait_field(server, "ipn", "a1", CIDRS, &cidrs)?;
    ensure!(blocks(server)? == found, "{:?}", blocks(server)?);
    drop(agent);
    clean(server)
}

/// Creates a block as another node's agent would have done.
fn block(server: &ApiServer, node: &str, cidr: &str) -> Result<()> {
    let name = cidr.replace(['.', '/'], "-");
    server.apply(&format!(
        "{{apiVersion: ipip.dev/v1alpha1, kind: IpipPodBlock, metadata: {{name: {name}}}, spec: {{cidr: {cidr}, node: {node}}}}}"
    ))
}

fn an_agent_waits_for_a_free_block_and_readyz_and_an_event_say_so(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    block(server, "gone", "10.77.0.0/24")?;
    // A range without a block is not free, either: this node does not use the pool yet.
    published(server, "old", "10.0.0.12", "10.77.1.0/24", "")?;
    let settings = ["--cluster-pod-cidrs", "10.77.0.0/23"];
    let agent = ApiAgent::start_with(server, "a1", &settings)?;
    let why = "clusterPodCIDRs: none of the 2 blocks of 10.77.0.0/23 is free; remedy: ";
    agent.wait_ready(503, why)?;
    wait::until("an Event reports it", || {
        let events = server.kubectl(&["get", "events", "-A"])?;
        Ok(events.contains("IpipWaiting") && events.contains(why))
    })?;
    ensure!(
        field(server, "ipn", "a1", CIDRS).is_err(),
        "there should be no IpipNode"
    );
    server.kubectl(&["delete", "ipb", "10-77-0-0-24"])?;
    wait_field(server, "ipn", "a1", CIDRS, r#"["10.77.0.0/24"]"#)?;
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn a_range_outside_of_a_changed_pool_stays_with_a_warning_until_the_ipipnode_is_deleted(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(200, "ok")?;
    let before = blocks(server)?;
    let cidrs = field(server, "ipn", "a1", CIDRS)?;
    drop(agent);
    // The former pool stays a range for pods, as the guide says.
    let changed = [
        "--cluster-pod-cidrs",
        "10.78.0.0/24",
        "--pod-cidrs",
        "10.77.0.0/22",
    ];
    let agent = ApiAgent::start_with(server, "a1", &changed)?;
    wait::until("an Event reports it", || {
        let events = server.kubectl(&["get", "events", "-A"])?;
        Ok(events.contains("is not in clusterPodCIDRs (10.78.0.0/24) and stays in use"))
    })?;
    agent.wait_ready(200, "ok")?;
    ensure!(
        field(server, "ipn", "a1", CIDRS)? == cidrs,
        "the node's range has changed"
    );
    ensure!(blocks(server)? == before, "{:?}", blocks(server)?);
    // As the Event says, after the node was drained.
    server.kubectl(&["delete", "ipipnode", "a1"])?;
    wait_field(server, "ipn", "a1", CIDRS, r#"["10.78.0.0/24"]"#)?;
    wait::until("the old block is released", || {
        let found = blocks(server)?;
        let range: Ipv4Network = "10.78.0.0/24".parse()?;
        Ok(found.len() == 1 && found.contains_key(&range))
    })?;
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn a_node_that_is_created_again_keeps_its_block(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(200, "ok")?;
    let before = blocks(server)?;
    let name = before.keys().next().context("no block")?;
    let name = name.to_string().replace(['.', '/'], "-");
    // No controller deletes the objects of the deleted Node here.
    server.kubectl(&["delete", "node", "a1"])?;
    node(server, "a1", ADDRESS, "", "")?;
    let uid = field(server, "node", "a1", "{.metadata.uid}")?;
    let owner = "{.metadata.ownerReferences[0].uid}";
    wait_field(server, "ipb", &name, owner, &uid)?;
    wait_field(server, "ipn", "a1", owner, &uid)?;
    wait_field(server, "ipc", "a1.0", owner, &uid)?;
    ensure!(blocks(server)? == before, "{:?}", blocks(server)?);
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}

fn a_node_that_had_a_pod_cidr_before_the_pool_keeps_it(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "10.77.3.0/24", "")?;
    let agent = ApiAgent::start(server, "a1")?;
    wait_field(server, "ipn", "a1", READY, "True")?;
    ensure!(blocks(server)?.is_empty());
    let created = field(server, "ipn", "a1", "{.metadata.uid}")?;
    drop(agent);
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    let expected = BTreeMap::from([("10.77.3.0/24".parse()?, "a1".to_owned())]);
    wait::until("the range has a block", || Ok(blocks(server)? == expected))?;
    agent.wait_ready(200, "ok")?;
    ensure!(
        field(server, "ipn", "a1", "{.metadata.uid}")? == created,
        "a new IpipNode"
    );
    drop(agent);
    clean(server)
}

fn a_pool_that_holds_the_nodes_own_address_is_refused_with_its_remedy(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    // As behind a NAT: no interface has it.
    set_internal_ips(server, &[ADDRESS, "10.77.1.50"])?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(
        503,
        "clusterPodCIDRs: 10.77.0.0/22 holds 10.77.1.50, an address of the node a1; remedy: choose networks that hold no node's address",
    )?;
    ensure!(blocks(server)?.is_empty());
    drop(agent);
    clean(server)
}

fn false_claims_in_the_pool_keep_no_node_from_a_block(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    // The one block of the pool holds it.
    published(server, "evil", "10.77.0.66", "10.42.12.0/24", "")?;
    // Its Node does not have this range.
    node(server, "liar", "10.0.0.67", "10.42.13.0/24", "")?;
    object(
        server,
        "liar",
        "internalIPs: [10.0.0.67], podCIDRs: [10.77.0.0/24]",
    )?;
    next_second();
    let settings = ["--cluster-pod-cidrs", "10.77.0.0/24"];
    let agent = ApiAgent::start_with(server, "a1", &settings)?;
    agent.wait_ready(200, "ok")?;
    wait_field(server, "ipn", "a1", CIDRS, r#"["10.77.0.0/24"]"#)?;
    let why = "node evil: internalIPs: \"10.77.0.66\" is in the pod range 10.77.0.0/24";
    ensure!(agent.log().contains(why), "{}", agent.log());
    drop(agent);
    clean(server)
}

fn a_node_cannot_use_the_block_of_another_node(server: &ApiServer) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    block(server, "b1", "10.77.3.0/24")?;
    next_second();
    // The thief is the first to publish the range, and its Node has it.
    published(server, "thief", "10.0.0.66", "10.77.3.128/25", "")?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(200, "ok")?;
    ensure!(
        agent.log().contains("overlaps 10.77.3.0/24 of b1"),
        "{}",
        agent.log()
    );
    node(server, "b1", "10.0.0.12", "", "")?;
    server.apply("{apiVersion: ipip.dev/v1alpha1, kind: IpipNode, metadata: {name: b1}, spec: {internalIPs: [10.0.0.12], podCIDRs: [10.77.3.0/24]}}")?;
    agent.wait_peers(&["b1", "thief"])?;
    let route = "10.77.3.0/24".parse()?;
    wait::until("its block leads to b1", || {
        Ok(routes(&agent)?.contains(&route))
    })?;
    drop(agent);
    clean(server)
}

/// As after an upgrade with Helm, which leaves the CRDs as they are.
fn an_agent_with_a_pool_on_a_server_without_the_kind_names_the_remedy(
    server: &ApiServer,
) -> Result<()> {
    node(server, "a1", ADDRESS, "", "")?;
    server.kubectl(&["delete", "crd", "ipippodblocks.ipip.dev"])?;
    let agent = ApiAgent::start_with(server, "a1", &POOL)?;
    agent.wait_ready(503, "remedy: kubectl apply -f manifests/base/crd.yaml")?;
    server.apply_manifests()?;
    wait::within(Duration::from_secs(90), "the node has its block", || {
        Ok(field(server, "ipn", "a1", CIDRS).is_ok_and(|cidrs| cidrs.starts_with("[\"10.77.")))
    })?;
    agent.wait_ready(200, "ok")?;
    drop(agent);
    clean(server)
}
