//! Compares what IpipNodes claim with the Nodes that the API server has.
//!
//! No agent watches all Nodes, and an admission policy that compares an IpipNode with its Node is evaluated against every
//! Node (docs/decisions/0046). So each agent reads the Node of a claim that it does not know yet: from the API server's
//! cache, and if that does not back the claim, from its storage. The claim is used after that, and the Node is not read
//! again while it backs the claim.

use super::node_spec;
use crate::nodes::inventory::{Backing, Fence, ParsedNode, Rules};
use ipnetwork::Ipv4Network;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::GetParams, runtime::watcher::DefaultBackoff};
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep},
};
use tracing::{debug, warn};

/// Requests for Nodes that run at the same time.
const CONCURRENCY: usize = 8;
/// Least time between two requests for one Node, because every agent sends them.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// Longest time between two requests for a Node that does not back its claim.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A claim, and the blocks of its node.
pub type Claimed<'a, 'b> = (&'a ParsedNode, &'b [Ipv4Network]);

/// The Nodes that were read, and the ranges of the cluster.
pub struct Backings {
    fence: Fence,
    nodes: HashMap<String, Known>,
    requests: mpsc::UnboundedSender<Request>,
}

/// What is known of a Node.
#[derive(Default)]
struct Known {
    /// Its addresses and ranges, as read last.
    backing: Option<Backing>,
    /// The claim that it does not back, according to the API server's storage.
    refused: Option<ParsedNode>,
    /// The request on the way, and the claim for which it was sent.
    asked: Option<(Source, ParsedNode)>,
    /// The time of the last request, and the pause before it.
    last: Option<(Instant, Duration)>,
}

/// Where the API server reads an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// Its cache, which may be some seconds old.
    Cache,
    /// Its storage.
    Storage,
    /// Its storage, for a claim that was refused before.
    Again,
}

/// A request for a Node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    name: String,
    source: Source,
    after: Duration,
}

/// A Node, as the API server has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    name: String,
    source: Source,
    /// Empty if there is no such Node.
    backing: Backing,
}

impl Request {
    /// The name of the Node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The answer with this Node.
    pub fn answer(self, node: &Node) -> Answer {
        self.with(of(node))
    }

    fn with(self, backing: Backing) -> Answer {
        Answer {
            name: self.name,
            source: self.source,
            backing,
        }
    }
}

impl Backings {
    /// Knows no Node. The requests are for [`read`].
    pub fn new(requests: mpsc::UnboundedSender<Request>) -> Self {
        Self {
            fence: Fence::default(),
            nodes: HashMap::new(),
            requests,
        }
    }

    /// Sets the ranges of the cluster.
    pub fn set_fence(&mut self, fence: Fence) {
        self.fence = fence;
    }

    /// Whether a node may have this block.
    pub fn allow(&self, block: &Ipv4Network) -> bool {
        self.fence.pod_cidr(block).is_ok()
    }

    /// Takes an answer of the API server.
    pub fn answer(&mut self, answer: Answer) {
        let known = self.nodes.entry(answer.name).or_default();
        known.backing = Some(answer.backing);
        if let Some((source, claim)) = known.asked.take_if(|(it, _)| *it == answer.source)
            && source != Source::Cache
        {
            known.refused = Some(claim);
        }
    }

    /// Compares all claims, and requests the Nodes that are needed. `own` is the Node of this host, which is watched.
    /// Returns the names of the nodes whose claims wait for an answer.
    pub fn compare<'a>(
        &mut self,
        claims: impl Iterator<Item = Claimed<'a, 'a>>,
        own: Option<&Node>,
        now: Instant,
    ) -> HashSet<String> {
        let mut nodes = std::mem::take(&mut self.nodes);
        let mut waiting = HashSet::new();
        for (claim, blocks) in claims {
            let name = &claim.node.name;
            let mut known = nodes.remove(name).unwrap_or_default();
            let own = own.filter(|it| it.metadata.name.as_ref() == Some(name));
            if !self.covers(&known, claim, blocks) {
                if let Some(own) = own {
                    known.backing = Some(of(own));
                    known.refused = Some(claim.clone());
                } else if known.refused.as_ref() != Some(claim) {
                    waiting.insert(name.clone());
                    self.ask(&mut known, claim, now);
                } else if known.asked.is_none() {
                    self.request(&mut known, claim, Source::Again, now);
                }
            }
            self.nodes.insert(name.clone(), known);
        }
        waiting
    }

    /// `claim` without the values that its node may not have, or of which that is not known yet. `None` if nothing is known
    /// of the Node yet.
    pub fn apply<'a>(&self, (claim, blocks): Claimed<'a, '_>) -> Option<Cow<'a, ParsedNode>> {
        let known = self.nodes.get(&claim.node.name)?;
        let rules = Rules {
            fence: &self.fence,
            backing: known.backing.as_ref()?,
            blocks,
            is_final: known.refused.as_ref() == Some(claim),
        };
        Some(rules.apply(claim))
    }

    /// Whether the Node need not be read: it backs what the fence lets pass.
    fn covers(&self, known: &Known, claim: &ParsedNode, blocks: &[Ipv4Network]) -> bool {
        let Some(backing) = &known.backing else {
            return false;
        };
        let rules = Rules {
            fence: &self.fence,
            backing,
            blocks,
            is_final: false,
        };
        !rules.leave_waiting(claim)
    }

    fn ask(&self, known: &mut Known, claim: &ParsedNode, now: Instant) {
        let source = match (&known.asked, &known.backing) {
            (Some((Source::Cache | Source::Storage, _)), _) => return,
            (_, None) => Source::Cache,
            (_, Some(_)) => Source::Storage,
        };
        self.request(known, claim, source, now);
    }

    fn request(&self, known: &mut Known, claim: &ParsedNode, source: Source, now: Instant) {
        let pause = match (source, known.last) {
            (Source::Again, Some((_, pause))) => (pause * 2).min(LONGEST_PAUSE),
            _ => LEAST_PAUSE,
        };
        // The second look follows at once.
        let is_second = source == Source::Storage && known.refused.is_none();
        let since = known.last.map(|(last, _)| now.duration_since(last));
        let after = match since {
            Some(since) if !is_second => pause.saturating_sub(since),
            _ => Duration::ZERO,
        };
        known.last = Some((now + after, pause));
        known.asked = Some((source, claim.clone()));
        // The receiver ends with the agent.
        let _ = self.requests.send(Request {
            name: claim.node.name.clone(),
            source,
            after,
        });
    }
}

/// Reads the Nodes that are requested, until the receiver of the answers is dropped.
pub async fn read(
    client: Client,
    mut requests: mpsc::UnboundedReceiver<Request>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    let nodes: Api<Node> = Api::all(client);
    let room = Arc::new(Semaphore::new(CONCURRENCY));
    while let Some(request) = requests.recv().await {
        let (nodes, room, answers) = (nodes.clone(), room.clone(), answers.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = answers.closed() => {}
                answer = read_one(&nodes, &room, request) => drop(answers.send(answer)),
            }
        });
    }
}

/// Reads one Node. Repeats the request until the API server answers it.
async fn read_one(nodes: &Api<Node>, room: &Semaphore, request: Request) -> Answer {
    sleep(request.after).await;
    let params = GetParams {
        resource_version: (request.source == Source::Cache).then(|| "0".into()),
    };
    let mut backoff = DefaultBackoff::default();
    loop {
        let permit = room.acquire().await;
        let found = nodes.get_with(request.name(), &params).await;
        drop(permit);
        match found {
            Ok(node) => return request.answer(&node),
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                return request.with(Backing::default());
            }
            Err(error) => {
                if matches!(&error, kube::Error::Api(status) if status.is_forbidden()) {
                    warn!(node = request.name, %error, "cannot read a Node, so the claims of this node wait; remedy: kubectl apply -f manifests/base/rbac.yaml");
                }
                debug!(node = request.name, %error, "cannot read a Node");
                sleep(backoff.next().unwrap_or(LONGEST_PAUSE)).await;
            }
        }
    }
}

/// What a Node backs.
fn of(node: &Node) -> Backing {
    Backing {
        internal_ips: node_spec::internal_ips(node).into_iter().collect(),
        pod_cidrs: node_spec::networks(node).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::inventory::{Claim as Texts, Text};
    use serde_json::json;
    use tokio::sync::mpsc::UnboundedReceiver;

    fn claim(name: &str, ips: &[&str]) -> ParsedNode {
        Texts {
            name: Text::from(name),
            internal_ips: ips.iter().map(|it| Text::from(*it)).collect(),
            pod_cidrs: vec![Text::from("10.42.1.0/24")],
            public_endpoint: None,
            realm: None,
            encapsulation: None,
            probe_key: None,
        }
        .parse()
    }

    fn node(name: &str, ips: &[&str]) -> Node {
        let addresses: Vec<_> = ips
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24", "fd00::/64"]},
            "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    struct Fixture {
        backings: Backings,
        requests: UnboundedReceiver<Request>,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let (sender, requests) = mpsc::unbounded_channel();
            Self {
                backings: Backings::new(sender),
                requests,
                now: Instant::now(),
            }
        }

        fn compare(&mut self, claim: &ParsedNode, own: Option<&Node>) -> usize {
            let claims = std::iter::once((claim, &[][..]));
            self.backings.compare(claims, own, self.now).len()
        }

        /// Answers the one request with the InternalIPs of the Node.
        fn answer(&mut self, ips: &[&str]) -> (Source, Duration) {
            let request = self.requests.try_recv().unwrap();
            let (source, after) = (request.source, request.after);
            self.now += after;
            let node = node(&request.name, ips);
            self.backings.answer(request.answer(&node));
            (source, after)
        }

        fn used(&self, claim: &ParsedNode) -> (Vec<String>, usize) {
            let Some(left) = self.backings.apply((claim, &[])) else {
                return (Vec::new(), 0);
            };
            let ips = left.node.internal_ips.iter().map(ToString::to_string);
            (ips.collect(), left.invalid.len())
        }
    }

    #[tokio::test]
    async fn a_claim_waits_for_its_node_which_is_read_once() {
        let mut it = Fixture::new();
        let claim = claim("b1", &["10.0.0.1"]);
        assert_eq!(it.compare(&claim, None), 1);
        assert_eq!(it.compare(&claim, None), 1);
        assert_eq!(it.used(&claim), (vec![], 0));
        assert_eq!(it.answer(&["10.0.0.1"]), (Source::Cache, Duration::ZERO));
        assert_eq!(it.compare(&claim, None), 0);
        assert_eq!(it.used(&claim), (vec!["10.0.0.1".into()], 0));
        assert!(it.requests.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_cache_that_is_behind_refuses_nothing() {
        let mut it = Fixture::new();
        let claim = claim("b1", &["10.0.0.1", "10.0.0.2"]);
        it.compare(&claim, None);
        it.answer(&["10.0.0.1"]);
        assert_eq!(it.compare(&claim, None), 1);
        assert_eq!(it.used(&claim), (vec!["10.0.0.1".into()], 0));
        assert_eq!(it.answer(&["10.0.0.1", "10.0.0.2"]).0, Source::Storage);
        assert_eq!(it.compare(&claim, None), 0);
        assert_eq!(it.used(&claim).0.len(), 2);
    }

    #[tokio::test]
    async fn a_claim_that_the_node_does_not_back_is_refused_and_compared_again_ever_more_rarely() {
        let mut it = Fixture::new();
        let false_claim = claim("evil", &["10.0.0.1", "10.0.0.50"]);
        it.compare(&false_claim, None);
        it.answer(&["10.0.0.1"]);
        it.compare(&false_claim, None);
        assert_eq!(it.answer(&["10.0.0.1"]).0, Source::Storage);
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            assert_eq!(it.compare(&false_claim, None), 0);
            assert_eq!(it.used(&false_claim), (vec!["10.0.0.1".into()], 1));
            let (source, after) = it.answer(&["10.0.0.1"]);
            assert_eq!(source, Source::Again);
            assert!(after >= last && after <= LONGEST_PAUSE, "{after:?}");
            last = after;
        }
        assert_eq!(last, LONGEST_PAUSE);
        // Another claim does not wait for the next look, but for a second.
        it.compare(&false_claim, None);
        let honest = claim("evil", &["10.0.0.1", "10.0.0.3"]);
        assert_eq!(it.compare(&honest, None), 1);
        let again = it.requests.try_recv().unwrap();
        assert_eq!(again.after, LONGEST_PAUSE);
        let (source, after) = it.answer(&["10.0.0.1", "10.0.0.3"]);
        assert_eq!(source, Source::Storage);
        assert!(after <= LEAST_PAUSE, "{after:?}");
        assert_eq!(it.compare(&honest, None), 0);
        assert_eq!(it.used(&honest).0.len(), 2);
    }

    #[tokio::test]
    async fn a_node_that_does_not_exist_backs_nothing() {
        let mut it = Fixture::new();
        let claim = claim("gone", &["10.0.0.1"]);
        for _ in 0..2 {
            it.compare(&claim, None);
            let request = it.requests.try_recv().unwrap();
            it.backings.answer(request.with(Backing::default()));
        }
        assert_eq!(it.compare(&claim, None), 0);
        assert_eq!(it.used(&claim), (vec![], 2));
    }

    #[tokio::test]
    async fn the_own_node_is_not_requested() {
        let mut it = Fixture::new();
        let claim = claim("a1", &["10.0.0.1", "10.0.0.2"]);
        let own = node("a1", &["10.0.0.1"]);
        assert_eq!(it.compare(&claim, Some(&own)), 0);
        assert_eq!(it.used(&claim), (vec!["10.0.0.1".into()], 1));
        let own = node("a1", &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(it.compare(&claim, Some(&own)), 0);
        assert_eq!(it.used(&claim).0.len(), 2);
        assert!(it.requests.try_recv().is_err());
    }
}
