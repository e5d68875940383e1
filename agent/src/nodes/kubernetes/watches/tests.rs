use super::{super::backing::Request, *};
use futures_util::stream;
use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

fn object(name: &str, endpoint: &str) -> IpipNode {
    let number = name.len();
    serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipNode",
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "internalIPs": [format!("10.0.0.{number}")],
            "podCIDRs": [format!("10.42.{number}.0/24")],
            "publicEndpoint": endpoint,
        },
    }))
    .unwrap()
}

fn events<K>(events: UnboundedReceiver<Event<K>>) -> impl Stream<Item = WatchResult<Event<K>>> {
    stream::unfold(events, async |mut events| {
        let event = events.recv().await?;
        Some((Ok(event), events))
    })
}

/// Answers as an API server that has the Node of each object.
async fn answer(mut requested: UnboundedReceiver<Request>, replies: UnboundedSender<Answer>) {
    while let Some(request) = requested.recv().await {
        let number = request.name().len();
        let node = serde_json::from_value(json!({
            "metadata": {"name": request.name()},
            "spec": {"podCIDR": format!("10.42.{number}.0/24")},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
        }));
        replies.send(request.answer(&node.unwrap())).unwrap();
    }
}

/// The watches of the node `own`, and what a test feeds them.
struct Feed {
    objects: UnboundedSender<Event<IpipNode>>,
    claims: UnboundedSender<Event<IpipClaim>>,
    held: watch::Receiver<BTreeSet<String>>,
    gone: Sender<String>,
    rights: watch::Sender<Option<TooManyRights>>,
    inventories: Receiver<Update>,
    _others: (
        UnboundedSender<Event<Node>>,
        UnboundedSender<Event<IpipPodBlock>>,
    ),
}

impl Feed {
    /// Starts with `own` and these peers.
    async fn start(peers: &[&str]) -> Self {
        let (own, _) = watch::channel(OwnObjects::default());
        let (held_sender, held) = watch::channel(BTreeSet::new());
        let (gone, gone_receiver) = mpsc::channel(16);
        let (updates, inventories) = mpsc::channel(16);
        let (node_sender, nodes) = mpsc::unbounded_channel();
        let (object_sender, objects) = mpsc::unbounded_channel();
        let (claim_sender, claims) = mpsc::unbounded_channel();
        let (block_sender, blocks) = mpsc::unbounded_channel();
        let (_, api_server) = watch::channel(BTreeSet::new());
        let (rights, too_many_rights) = watch::channel(None);
        let (requests, requested) = mpsc::unbounded_channel();
        let (replies, answers) = mpsc::unbounded_channel();
        tokio::spawn(answer(requested, replies));
        let (ranges, fence) = watch::channel(None);
        ranges.send(Some(Fence::default())).unwrap();
        let backings = Backings::new(requests);
        let watches = Watches::new("own".into(), backings, None, own, held_sender, updates);
        let (nodes, objects) = (events(nodes), events(objects));
        let (claims, blocks) = (events(claims), events(blocks));
        let read = Read {
            api_server,
            fence,
            answers,
            gone: gone_receiver,
            too_many_rights,
        };
        tokio::spawn(watches.run((nodes, objects, claims, blocks), read));
        for event in [Event::Init, Event::InitDone] {
            node_sender.send(event).unwrap();
        }
        for event in [Event::Init, Event::InitDone] {
            claim_sender.send(event).unwrap();
        }
        let mut it = Self {
            objects: object_sender,
            claims: claim_sender,
            held,
            gone,
            rights,
            inventories,
            _others: (node_sender, block_sender),
        };
        it.list(peers);
        assert_eq!(it.next().await.nodes.len(), peers.len() + 1);
        it
    }

    /// Lists `own` and these peers.
    fn list(&self, peers: &[&str]) {
        self.objects.send(Event::Init).unwrap();
        for name in [&["own"], peers].concat() {
            let object = object(name, "203.0.113.1");
            self.objects.send(Event::InitApply(object)).unwrap();
        }
        self.objects.send(Event::InitDone).unwrap();
    }

    fn apply(&self, name: &str, endpoint: &str) {
        let event = Event::Apply(object(name, endpoint));
        self.objects.send(event).unwrap();
    }

    fn delete(&self, name: &str) {
        let event = Event::Delete(object(name, "203.0.113.1"));
        self.objects.send(event).unwrap();
    }

    async fn next(&mut self) -> Inventory {
        loop {
            match self.inventories.recv().await.unwrap() {
                Ok(inventory) => return inventory,
                Err(refusal) => assert!(refusal.waits, "{refusal}"),
            }
        }
    }
}

fn names(inventory: &Inventory) -> Vec<&str> {
    inventory.nodes.iter().map(|it| it.name.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_object_is_written_again_never_leaves_and_one_that_is_deleted_does() {
    let mut feed = Feed::start(&["peer"]).await;
    feed.delete("peer");
    // The agent of the peer needs a moment for the new object.
    tokio::time::sleep(2 * INTERVAL).await;
    feed.apply("peer", "203.0.113.3");
    let inventory = feed.next().await;
    let endpoint = inventory.node("peer").unwrap().public_endpoint;
    assert_eq!(endpoint, Some(Ipv4Addr::new(203, 0, 113, 3)));
    feed.delete("peer");
    assert_eq!(names(&feed.next().await), ["own"]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_changes_its_object_all_the_time_causes_one_update_a_second() {
    let mut feed = Feed::start(&["evil"]).await;
    let start = Instant::now();
    for n in 0..500u32 {
        feed.apply("evil", &format!("203.0.113.{}", 1 + n % 250));
        // The status alone, and a claim that changes no conflict.
        feed.apply("evil", &format!("203.0.113.{}", 1 + n % 250));
        let claim = IpipClaim::new("evil.0", Default::default());
        feed.claims.send(Event::Delete(claim)).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seconds = start.elapsed().as_secs();
    let mut updates = 0;
    while feed.inventories.try_recv().is_ok() {
        updates += 1;
    }
    assert_eq!(seconds, 10);
    assert!((9..=11).contains(&updates), "{updates}");
}

#[tokio::test(start_paused = true)]
async fn an_inventory_that_is_the_same_as_before_is_not_sent() {
    let mut feed = Feed::start(&["peer"]).await;
    feed.apply("peer", "203.0.113.9");
    feed.apply("peer", "203.0.113.1");
    tokio::time::sleep(2 * INTERVAL).await;
    assert!(feed.inventories.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn most_peers_that_disappear_together_are_held_until_they_return_or_their_nodes_are_gone() {
    let peers = ["a1", "b12", "c123", "d1234", "e12345"];
    let mut feed = Feed::start(&peers).await;
    // A list without them, as after a restore of etcd.
    feed.list(&["a1"]);
    let inventory = feed.next().await;
    let held: BTreeSet<String> = peers[1..].iter().map(ToString::to_string).collect();
    assert_eq!((inventory.nodes.len(), &inventory.held), (6, &held));
    assert_eq!(*feed.held.borrow_and_update(), held);

    feed.gone.send("b12".into()).await.unwrap();
    assert_eq!(
        names(&feed.next().await),
        ["a1", "c123", "d1234", "e12345", "own"]
    );
    feed.apply("c123", "203.0.113.1");
    assert_eq!(feed.next().await.held.len(), 2);
    let inventory = feed.next().await;
    assert_eq!(names(&inventory), ["a1", "c123", "own"]);
    assert_eq!(inventory.held, BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_a_new_list_lacks_leaves_the_inventory() {
    let mut feed = Feed::start(&["a1", "b12"]).await;
    feed.list(&["b12"]);
    assert_eq!(names(&feed.next().await), ["b12", "own"]);
}

#[tokio::test(start_paused = true)]
async fn with_too_many_rights_no_change_is_followed_and_without_them_all_are() {
    let mut feed = Feed::start(&["a1"]).await;
    feed.rights
        .send(Some(TooManyRights::of("IpipNode", "b1")))
        .unwrap();
    let refusal = feed.inventories.recv().await.unwrap().unwrap_err();
    assert!(refusal.blocks && !refusal.waits, "{refusal:?}");
    assert!(refusal.why.contains("admission.yaml"), "{refusal}");
    feed.apply("b12", "203.0.113.2");
    tokio::time::sleep(10 * INTERVAL).await;
    assert!(feed.inventories.try_recv().is_err());
    feed.rights.send(None).unwrap();
    // The Node of b12 is read first.
    assert_eq!(names(&feed.next().await), ["a1", "own"]);
    assert_eq!(names(&feed.next().await), ["a1", "b12", "own"]);
}
