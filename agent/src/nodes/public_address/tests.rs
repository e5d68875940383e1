use super::*;
use crate::nodes::inventory::parse;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 12);
const MINUTE: Duration = Duration::from_secs(60);

/// `own` and `a2` in the realm a, `b1` and `b2` in b, `c1` in c, and `d1` without one.
fn inventory() -> Inventory {
    let mut text = String::from("nodes:\n");
    for (index, (name, realm)) in [
        ("own", "a"),
        ("a2", "a"),
        ("b1", "b"),
        ("b2", "b"),
        ("c1", "c"),
        ("d1", ""),
    ]
    .into_iter()
    .enumerate()
    {
        text += &format!(
            "- {{name: {name}, internalIPs: [10.0.0.{index}1], podCIDRs: [10.42.{index}.0/24], realm: {realm:?}}}\n"
        );
    }
    parse(&text, "own", None).unwrap()
}

struct Test {
    views: Views,
    inventory: Inventory,
    now: Instant,
}

impl Test {
    fn new() -> Self {
        Self {
            views: Views::default(),
            inventory: inventory(),
            now: Instant::now(),
        }
    }

    fn saw(&mut self, peer: &str, address: Ipv4Addr) -> &mut Self {
        self.now += Duration::from_secs(1);
        self.views.saw(peer, address, self.now);
        self
    }

    fn learned(&mut self) -> Learned {
        let own = self.inventory.node("own").unwrap();
        self.views.learned(own, &self.inventory, self.now)
    }

    fn agreed(&mut self) -> Option<(Ipv4Addr, [String; 2])> {
        match self.learned() {
            Learned::Agreed { address, by } => Some((address, by.map(|it| it.node))),
            _ => None,
        }
    }

    fn text(&mut self, setting: LearnedEndpoint) -> Option<String> {
        let learned = self.learned();
        let own = self.inventory.node("own").unwrap();
        problem(&learned, own, &self.inventory, setting).map(|it| it.text)
    }
}

#[test]
fn two_peers_of_different_realms_agree() {
    let mut it = Test::new();
    assert_eq!(it.learned(), Learned::Nothing);
    assert_eq!(it.saw("b2", ADDRESS).learned(), Learned::Nothing);
    let expected = Some((ADDRESS, ["b2".into(), "c1".into()]));
    assert_eq!(it.saw("c1", ADDRESS).agreed(), expected);
    // The same two are named while they agree.
    assert_eq!(it.saw("b1", ADDRESS).agreed(), expected);
    it.inventory.nodes.retain(|node| node.name != "b2");
    let expected = Some((ADDRESS, ["b1".into(), "c1".into()]));
    assert_eq!(it.agreed(), expected);
    // Nodes without a realm share the unnamed one.
    let mut it = Test::new();
    let expected = Some((ADDRESS, ["d1".into(), "b1".into()]));
    assert_eq!(it.saw("b1", ADDRESS).saw("d1", ADDRESS).agreed(), expected);
    let text = it.text(LearnedEndpoint::Suggest).unwrap();
    assert!(text.contains("d1 (without a realm) and b1"), "{text}");
}

#[test]
fn peers_of_one_realm_are_not_enough_nor_is_one_of_the_own_realm() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("b2", ADDRESS).saw("a2", ADDRESS);
    it.saw("gone", ADDRESS);
    assert_eq!(it.learned(), Learned::Nothing);
    // A peer that is reached by a private path is in the own realm (`seen`).
    it.inventory.nodes[4].realm = "a".into();
    assert_eq!(it.saw("c1", ADDRESS).learned(), Learned::Nothing);
}

#[test]
fn private_addresses_and_the_own_internal_ips_say_nothing() {
    let mut it = Test::new();
    it.inventory.nodes[0].internal_ips.push(OTHER);
    for address in [
        [10, 0, 0, 1],
        [172, 16, 0, 1],
        [192, 168, 0, 1],
        [100, 64, 0, 1],
        [100, 127, 255, 255],
        [127, 0, 0, 1],
        [169, 254, 0, 1],
        [224, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
        OTHER.octets(),
    ] {
        it.saw("b1", address.into()).saw("c1", address.into());
        assert_eq!(it.learned(), Learned::Nothing, "{address:?}");
    }
    // Their neighbours can be public, and the ranges for documentation.
    for address in [
        [100, 63, 0, 1],
        [100, 128, 0, 1],
        [172, 32, 0, 1],
        [198, 51, 100, 1],
    ] {
        assert!(can_be_public(address.into()), "{address:?}");
    }
}

#[test]
fn peers_that_see_different_addresses_are_named_and_nothing_is_learned() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("c1", ADDRESS).saw("b2", OTHER);
    let expected = BTreeMap::from([(ADDRESS, "b1".into()), (OTHER, "b2".into())]);
    assert_eq!(it.learned(), Learned::Different(expected));
    let text = it.text(LearnedEndpoint::Suggest).unwrap();
    for part in [
        "203.0.113.11 (b1), 203.0.113.12 (b2); none is suggested",
        "publicEndpoint: ADDRESS",
        "learnedPublicEndpoint: ignore",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn an_address_that_changes_is_followed_when_peers_agree_again() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("c1", ADDRESS);
    // What the other peer saw before the change no longer counts.
    assert_eq!(it.saw("b1", OTHER).learned(), Learned::Nothing);
    let expected = Some((OTHER, ["b1".into(), "c1".into()]));
    assert_eq!(it.saw("c1", OTHER).agreed(), expected);
}

#[test]
fn an_address_that_returns_to_a_former_one_is_not_learned_for_some_time() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("b1", OTHER).saw("b1", ADDRESS);
    it.saw("c1", ADDRESS);
    let expected = BTreeMap::from([(ADDRESS, "b1".into()), (OTHER, "b1".into())]);
    assert_eq!(it.learned(), Learned::Different(expected));
    it.now += EXPIRY;
    it.saw("b1", ADDRESS).saw("c1", ADDRESS);
    assert!(it.agreed().is_some());
    // A peer cannot fill the memory.
    for last in 0..=255 {
        it.saw("b1", Ipv4Addr::new(198, 51, 100, last));
    }
    assert_eq!(it.views.peers["b1"].former.len(), FORMER);
}

#[test]
fn what_a_peer_has_not_confirmed_for_long_expires() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("c1", ADDRESS);
    it.now += EXPIRY - MINUTE;
    assert!(it.saw("c1", ADDRESS).agreed().is_some());
    it.now += MINUTE;
    assert_eq!(it.learned(), Learned::Nothing);
    assert_eq!(it.views.peers.len(), 1);
}

#[test]
fn the_public_endpoint_of_another_node_is_not_suggested() {
    let mut it = Test::new();
    it.inventory.nodes[1].public_endpoint = Some(ADDRESS);
    it.saw("b1", ADDRESS).saw("c1", ADDRESS);
    let expected = Learned::OfAnother {
        address: ADDRESS,
        node: "a2".into(),
    };
    assert_eq!(it.learned(), expected);
    let text = it.text(LearnedEndpoint::Use).unwrap();
    assert!(
        text.contains("203.0.113.11, which is the publicEndpoint of a2"),
        "{text}"
    );
    // The own one is.
    it.inventory.nodes[1].public_endpoint = None;
    it.inventory.nodes[0].public_endpoint = Some(ADDRESS);
    assert!(it.agreed().is_some());
}

#[test]
fn a_suggestion_names_field_value_and_remedy() {
    let mut it = Test::new();
    it.saw("b1", ADDRESS).saw("c1", ADDRESS);
    let of_file = it.text(LearnedEndpoint::Suggest).unwrap();
    assert_eq!(
        of_file,
        "publicEndpoint: nobody has stated one, and b1 (realm \"b\") and c1 (realm \"c\") see this node as 203.0.113.11; remedy: write `publicEndpoint: 203.0.113.11` for own into the inventory; if other realms shall not reach it there, set learnedPublicEndpoint: ignore"
    );
    // Nobody publishes a file.
    assert_eq!(it.text(LearnedEndpoint::Use), Some(of_file));
    it.inventory.is_published = true;
    assert_eq!(
        it.text(LearnedEndpoint::Suggest).unwrap(),
        "publicEndpoint: nobody has stated one, and b1 (realm \"b\") and c1 (realm \"c\") see this node as 203.0.113.11; remedy: `kubectl annotate node own ipip.dev/public-endpoint=203.0.113.11`, or set learnedPublicEndpoint: use, so that agents publish what peers see; if other realms shall not reach it there, `kubectl annotate node own ipip.dev/public-endpoint=none`"
    );
    assert_eq!(it.text(LearnedEndpoint::Use), None);
    it.inventory.nodes[0].public_endpoint = Some(ADDRESS);
    let text = it
        .saw("c1", OTHER)
        .saw("b1", ADDRESS)
        .text(LearnedEndpoint::Use);
    assert!(text.unwrap().contains("203.0.113.11 stays published"));
}
