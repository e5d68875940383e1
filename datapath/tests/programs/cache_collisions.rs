//! Entries that share a cache index.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{Addr, Counter, DropReason, NodeAddr, Pod, Program, Route};

/// An address above 10.64.0.0 that has the same cache index as `address`.
fn twin(address: &str, index: fn(Addr) -> u32) -> Addr {
    let wanted = index(addr(address));
    let first = addr("10.64.0.0").to_bits();
    (first..first + (1 << 26))
        .map(|bits| Addr(bits.to_be_bytes()))
        .find(|it| index(*it) == wanted)
        .expect("65,536 indexes and 67 million addresses")
}

#[test]
fn two_pods_with_one_index_are_both_found_until_each_is_removed() {
    let mut node = Node::new();
    let twin = twin(POD, Addr::cache_index);
    let from = |source: &str| Ip::tcp(source, 40_000, B_POD, 80);
    let twins = from(&twin.to_string());
    node.from_pod(&twins)
        .is_dropped(DropReason::PodSourceSpoofed);
    let pod = node.maps.pods.get(&addr(POD), 0).unwrap();
    node.maps.pods.insert(twin, pod, 0).unwrap();
    node.from_pod(&twins).is(REDIRECT, &[Counter::PodToTunnel]);
    node.from_pod(&from(POD))
        .is(REDIRECT, &[Counter::PodToTunnel]);

    node.maps.pods.remove(&addr(POD)).unwrap();
    node.from_pod(&from(POD))
        .is_dropped(DropReason::PodSourceSpoofed);
    node.from_pod(&twins).is(REDIRECT, &[Counter::PodToTunnel]);
    node.maps.pods.remove(&twin).unwrap();
    node.from_pod(&twins)
        .is_dropped(DropReason::PodSourceSpoofed);
}

#[test]
fn after_a_pods_entry_is_replaced_programs_use_the_new_one_at_once() {
    let mut node = Node::new();
    let packet = Ip::tcp(POD, 40_000, B_POD, 80);
    node.from_pod(&packet).is(REDIRECT, &[Counter::PodToTunnel]);
    let pod = node.maps.pods.get(&addr(POD), 0).unwrap();
    let elsewhere = Pod {
        ifindex: pod.ifindex + 1,
        ..pod
    };
    node.maps.pods.insert(addr(POD), elsewhere, 0).unwrap();
    node.from_pod(&packet)
        .is_dropped(DropReason::PodSourceSpoofed);
    node.maps.pods.insert(addr(POD), pod, 0).unwrap();
    node.from_pod(&packet).is(REDIRECT, &[Counter::PodToTunnel]);
}

#[test]
fn an_address_with_the_index_of_a_peer_is_unknown_until_it_is_a_peers() {
    let mut node = Node::new();
    let twin = twin(B, Addr::cache_index);
    let inner = Ip::tcp(B_POD, 40_000, POD, 80).bytes();
    let outer = |source: &str| ipip(source, OWN, &inner);
    let run = |node: &Node, source: &str| node.run(Program::FromUplink, &outer(source));
    run(&node, &twin.to_string()).is_dropped(DropReason::UnknownPeer);
    let roles = NodeAddr::new(1, NodeAddr::UNDERLAY);
    node.maps.node_addrs.insert(twin, roles, 0).unwrap();
    run(&node, &twin.to_string()).is(REDIRECT, &[Counter::TunnelToPod]);
    run(&node, B).is(REDIRECT, &[Counter::TunnelToPod]);
    node.maps.node_addrs.remove(&addr(B)).unwrap();
    run(&node, B).is_dropped(DropReason::UnknownPeer);
    run(&node, &twin.to_string()).is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn two_blocks_with_one_index_lead_to_their_own_peers() {
    let mut node = Node::new();
    let block = twin(B_POD, Addr::block_cache_index).block();
    node.route(&block.to_string(), 24, 3, Route::PODS);
    let in_block = Addr((block.to_bits() + 7).to_be_bytes()).to_string();
    let to = |destination: &str| Ip::tcp(POD, 40_000, destination, 80);
    // Packets to peer B get an outer header, those to peer D do not.
    let sent = node.from_pod(&to(B_POD));
    sent.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(sent.packet()[9], 4);
    let sent = node.from_pod(&to(&in_block));
    sent.is(REDIRECT, &[Counter::PodToTunnel]);
    assert_eq!(sent.packet()[9], 6);
}
