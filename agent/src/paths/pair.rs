//! Two nodes that probe each other: each accepts data only from addresses at which the other has answered.

use crate::paths::{
    candidate::Candidate,
    peers::{Answer, Change, Offer, Paths},
    simulation::SECOND,
    uses::{Use, Uses},
};
use ipip_abi::{Candidate as Number, LARGE};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const TICK: Duration = Duration::from_millis(20);
const ROUND_TRIP: Duration = Duration::from_millis(15);
const ALL: [Number; 4] = [
    Number::PrivateIpip,
    Number::PrivateUdp,
    Number::PublicIpip,
    Number::PublicUdp,
];

/// The address of a node that a candidate leads to.
fn address(node: usize, number: Number) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, number.is_public().into(), node as u8)
}

pub(super) struct Pair {
    start: Instant,
    now: Instant,
    pub(super) nodes: [Paths; 2],
    /// Of the first node.
    pub(super) changes: Vec<(Duration, Change)>,
    /// In each packet.
    bytes: u16,
}

/// A packet between the two nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    /// The node that sends it; the packet of the other one that answers a probe belongs to it.
    pub(super) from: usize,
    pub(super) number: Number,
    /// Bytes of the inner packet.
    pub(super) len: u16,
    /// Since the pair began.
    pub(super) at: Duration,
    pub(super) is_probe: bool,
}

impl Pair {
    /// Both nodes offer each other all candidates. Of each, `remembered` is what it knows already.
    pub(super) fn new(remembered: [Uses; 2], other_realm: Option<&str>) -> Self {
        let start = Instant::now();
        let nodes = remembered.map(|it| Paths::new(it, start));
        let mut pair = Self {
            start,
            now: start,
            nodes,
            changes: Vec::new(),
            bytes: 100,
        };
        for (own, paths) in pair.nodes.iter_mut().enumerate() {
            let peer = 1 - own;
            let candidates = ALL.map(|number| Candidate {
                number,
                address: address(peer, number),
            });
            let offer = Offer {
                name: format!("n{peer}"),
                identity: [1; 8],
                candidates: candidates.map(|it| (it, 1480)).into(),
                other_realm: other_realm.map(str::to_owned),
            };
            paths.set_offers(BTreeMap::from([(1, offer)]), start);
        }
        pair
    }

    fn run(&mut self, time: Duration, has_traffic: bool, passes: impl Fn(Number) -> bool) {
        self.bytes = 100;
        self.run_sized(time, has_traffic, |number, _| passes(number));
    }

    /// `passes` also gets the size of the probe.
    fn run_sized(
        &mut self,
        time: Duration,
        has_traffic: bool,
        passes: impl Fn(Number, u16) -> bool,
    ) {
        self.run_through(time, [has_traffic; 2], |it| passes(it.number, it.len));
    }

    /// Lets time pass. With traffic, a node sends a packet in each tick. `passes` gets these packets, and each probe.
    pub(super) fn run_through(
        &mut self,
        time: Duration,
        has_traffic: [bool; 2],
        mut passes: impl FnMut(Packet) -> bool,
    ) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            let now = self.now;
            let shown = self.nodes.each_ref().map(Paths::uses);
            for (own, paths) in self.nodes.iter_mut().enumerate() {
                let packet = |number, len, is_probe| Packet {
                    from: own,
                    number,
                    len,
                    at: now - self.start,
                    is_probe,
                };
                let peer_name = format!("n{}", 1 - own);
                let path = shown[own].get(&peer_name).and_then(|it| it.path);
                if has_traffic[own] {
                    path.map(|it| passes(packet(it.number, self.bytes, false)));
                    paths.sent(1, now);
                    if usize::from(self.bytes) > LARGE {
                        paths.sent_large(1, now);
                    }
                }
                let mut probes = Vec::new();
                let mut at = now;
                let changes = paths.run(now, |_, number, size| {
                    // Two probes never have the same time.
                    at += Duration::from_nanos(100);
                    probes.push((number, size, at));
                    at
                });
                if own == 0 {
                    let at = now - self.start;
                    self.changes.extend(changes.into_iter().map(|it| (at, it)));
                }
                let own_name = format!("n{own}");
                for (number, size, at) in probes {
                    let len = size.unwrap_or(84);
                    if !passes(packet(number, len, true)) {
                        continue;
                    }
                    let accepted = shown[1 - own]
                        .get(&own_name)
                        .is_some_and(|it| it.proven.contains(&address(own, number)));
                    let answer = Answer {
                        received: at + ROUND_TRIP,
                        is_accepted: accepted,
                        len,
                    };
                    paths.answered((1, number), at, answer);
                }
            }
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.now - self.start
    }

    /// The path of the first node.
    pub(super) fn path(&self) -> Option<Number> {
        let uses = self.nodes[0].uses();
        uses.get("n1")?.path.map(|it| it.number)
    }
}

pub(super) fn nothing() -> [Uses; 2] {
    [Uses::new(), Uses::new()]
}

#[test]
fn the_best_path_that_both_accept_is_used_after_two_seconds_and_nothing_before() {
    for (works, expected) in [
        (&ALL[..], Some(Number::PrivateIpip)),
        (&ALL[1..], Some(Number::PrivateUdp)),
        (&ALL[2..], Some(Number::PublicIpip)),
        (&ALL[3..], Some(Number::PublicUdp)),
        (&[], None),
    ] {
        let mut it = Pair::new(nothing(), None);
        assert_eq!(it.path(), None);
        it.run(SECOND * 2, false, |number| works.contains(&number));
        assert_eq!(it.path(), expected);
        it.run(SECOND * 120, true, |number| works.contains(&number));
        assert_eq!(it.path(), expected);
        assert!(it.changes.len() <= 1, "{:?}", it.changes);
    }
}

#[test]
fn a_peer_that_does_not_know_this_node_gives_it_no_path() {
    let mut it = Pair::new(nothing(), None);
    // The peer's agent does not run: its programs answer, but it learns of no address.
    let offers = BTreeMap::new();
    it.nodes[1].set_offers(offers, it.start);
    it.run(SECOND * 60, true, |_| true);
    assert_eq!(it.path(), None);
    let proven = &it.nodes[0].uses()["n1"].proven;
    assert_eq!(proven.len(), 2, "{proven:?}");
}

#[test]
fn an_agent_that_begins_again_keeps_the_path() {
    let path = Some(Candidate {
        number: Number::PublicUdp,
        address: address(1, Number::PublicUdp),
    });
    let proven = |node| BTreeSet::from([address(node, Number::PublicUdp)]);
    let known = |node: usize| {
        let shown = Use {
            path,
            mtu: Some(1400),
            proven: proven(node),
        };
        Uses::from([(format!("n{node}"), shown)])
    };
    let mut it = Pair::new([known(1), known(0)], None);
    assert_eq!(it.path(), Some(Number::PublicUdp));
    it.run(SECOND * 10, true, |number| number == Number::PublicUdp);
    assert_eq!(it.path(), Some(Number::PublicUdp));
    assert_eq!(it.changes, []);
    // A path that is no candidate any more is not.
    let other = Uses::from([(
        "n1".into(),
        Use {
            path: path.map(|it| Candidate {
                address: Ipv4Addr::LOCALHOST,
                ..it
            }),
            mtu: None,
            proven: proven(1),
        },
    )]);
    assert_eq!(Pair::new([other, Uses::new()], None).path(), None);
}

#[test]
fn a_private_path_without_answers_is_given_up_if_no_other_one_works() {
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 20, true, |number| number == Number::PrivateIpip);
    assert_eq!(it.path(), Some(Number::PrivateIpip));
    it.run(SECOND * 25, true, |_| false);
    assert_eq!(it.path(), Some(Number::PrivateIpip));
    it.run(SECOND * 10, true, |_| false);
    assert_eq!(it.path(), None);
    it.run(SECOND * 3, true, |number| number == Number::PrivateIpip);
    assert_eq!(it.path(), Some(Number::PrivateIpip));

    // A public address belongs to nobody else.
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 20, true, |number| number == Number::PublicIpip);
    it.run(SECOND * 100, true, |_| false);
    assert_eq!(it.path(), Some(Number::PublicIpip));
}

#[test]
fn a_private_route_between_two_realms_is_found_within_a_minute_and_left_within_three_seconds() {
    for idle in [0, 100] {
        let mut it = Pair::new(nothing(), Some("b"));
        it.run(SECOND * (30 + idle), idle == 0, Number::is_public);
        assert_eq!(it.path(), Some(Number::PublicIpip));
        it.run(SECOND * 60, true, |_| true);
        assert_eq!(it.path(), Some(Number::PrivateIpip), "{:?}", it.changes);
        it.run(SECOND * 3, true, Number::is_public);
        assert_eq!(it.path(), Some(Number::PublicIpip), "{:?}", it.changes);
    }
}

#[test]
fn a_path_whose_mtu_shrinks_is_kept_with_the_mtu_that_passes_and_later_with_the_larger_one() {
    let is_public_ipip = |number| number == Number::PublicIpip;
    let mtu = |it: &Pair| it.nodes[0].uses()["n1"].mtu;
    let mut it = Pair::new(nothing(), None);
    it.bytes = 1400;
    it.run_sized(SECOND * 30, true, |number, _| is_public_ipip(number));
    assert_eq!(
        (it.path(), mtu(&it)),
        (Some(Number::PublicIpip), Some(1480))
    );
    for narrow in [1380, 1260] {
        it.run_sized(SECOND * 4, true, |number, size| {
            is_public_ipip(number) && size <= narrow
        });
        assert_eq!(mtu(&it), Some(narrow));
        it.run_sized(SECOND * 60, true, |number, size| {
            is_public_ipip(number) && size <= narrow
        });
        assert_eq!(mtu(&it), Some(narrow));
    }
    it.run_sized(SECOND * 600, true, |number, _| is_public_ipip(number));
    assert_eq!(mtu(&it), Some(1480));
    assert_eq!(it.changes.len(), 1, "{:?}", it.changes);
}

#[test]
fn without_large_packets_a_narrow_path_is_found_when_somebody_says_so() {
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 30, true, |_| true);
    let passes = |_, size: u16| size <= 1380;
    it.run_sized(SECOND * 30, true, passes);
    assert_eq!(it.nodes[0].uses()["n1"].mtu, Some(1480));
    let now = it.now;
    it.nodes[0].too_large(1, now);
    it.run_sized(SECOND * 3, true, passes);
    assert_eq!(it.nodes[0].uses()["n1"].mtu, Some(1380));
    it.run_sized(SECOND * 70, true, |_, _| true);
    assert_eq!(it.nodes[0].uses()["n1"].mtu, Some(1480));
}

#[test]
fn a_path_outlives_a_moment_without_an_uplink_and_other_addresses_of_this_node_if_it_is_private() {
    for (number, stays) in [(Number::PrivateUdp, true), (Number::PublicUdp, false)] {
        let mut it = Pair::new(nothing(), None);
        it.run(SECOND * 10, true, |other| other == number);
        assert_eq!(it.path(), Some(number));
        let full = it.nodes[0].peers[&1].offer.clone();
        let empty = Offer {
            candidates: BTreeMap::new(),
            ..full.clone()
        };
        for offer in [empty, full] {
            let now = it.now;
            it.nodes[0].set_offers(BTreeMap::from([(1, offer)]), now);
            it.run(SECOND / 2, true, |other| other == number);
            assert_eq!(it.path(), Some(number));
        }
        let now = it.now;
        it.nodes[0].forget(now);
        assert_eq!(it.path().is_some(), stays);
        it.run(SECOND * 3, true, |other| other == number);
        assert_eq!(it.path(), Some(number));
    }
}

#[test]
fn a_peer_with_another_key_proves_its_addresses_again() {
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 10, true, |_| true);
    let offer = Offer {
        identity: [2; 8],
        ..it.nodes[0].peers[&1].offer.clone()
    };
    let now = it.now;
    it.nodes[0].set_offers(BTreeMap::from([(1, offer)]), now);
    let shown = &it.nodes[0].uses()["n1"];
    let in_use = address(1, Number::PrivateIpip);
    assert_eq!(shown.proven, BTreeSet::from([in_use]));
    assert_eq!(shown.path.map(|it| it.number), Some(Number::PrivateIpip));
}

#[test]
fn an_address_is_proven_until_no_answer_has_come_from_it_for_ten_minutes() {
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 10, true, |_| true);
    let private = address(1, Number::PrivateIpip);
    let has_private = |it: &Pair| it.nodes[0].uses()["n1"].proven.contains(&private);
    assert!(has_private(&it));
    it.run(SECOND * 500, true, Number::is_public);
    assert!(has_private(&it));
    it.run(SECOND * 200, true, Number::is_public);
    assert!(!has_private(&it));
}

#[test]
fn an_answer_on_the_path_in_use_is_no_reason_to_look_at_a_peer_that_has_traffic() {
    let mut it = Pair::new(nothing(), None);
    it.run(SECOND * 60, true, |_| true);
    let paths = &mut it.nodes[0];
    let mut now = it.now;
    let mut seen = BTreeSet::new();
    // At the end, the peer accepts data no longer, which is a reason.
    for is_accepted in [true, false] {
        let end = now + SECOND * if is_accepted { 60 } else { 2 };
        while now < end {
            now += TICK;
            paths.sent(1, now);
            let mut probes = Vec::new();
            paths.run(now, |_, number, _| {
                probes.push(number);
                now
            });
            for number in probes {
                let received = now + ROUND_TRIP;
                let answer = Answer {
                    received,
                    is_accepted,
                    len: 84,
                };
                paths.answered((1, number), now, answer);
                let is_looked_at = paths.wake() == Some(received);
                let is_expected = number == Number::PrivateIpip && is_accepted;
                assert_eq!(is_looked_at, !is_expected, "{number:?} {is_accepted}");
                seen.insert((number, is_accepted));
            }
        }
    }
    for it in [
        (Number::PrivateIpip, true),
        (Number::PublicIpip, true),
        (Number::PrivateIpip, false),
    ] {
        assert!(seen.contains(&it), "{it:?} of {seen:?}");
    }
}
