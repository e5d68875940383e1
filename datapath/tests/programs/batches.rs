//! Entries that are read many at once are those that are read one by one, also on kernels that read only one at a time.

use crate::fixture::*;
use aya::{
    maps::{Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use ipip_abi::{Addr, NodeAddr, Peer, PeerBytes, PeerTraffic, Route, maps};
use ipip_datapath::{Maps, first_values};
use std::collections::BTreeMap;

/// More than two batches.
const MANY: u16 = 600;

#[test]
fn the_traffic_of_all_peers_is_that_of_each() {
    let node = Node::new();
    let map = MapData::from_pin(node.pins().map(&maps::PEER_TRAFFIC)).unwrap();
    let mut counted: PerCpuArray<_, PeerTraffic> =
        Map::from_map_data(map).unwrap().try_into().unwrap();
    let last = u16::try_from(maps::PEER_TRAFFIC.max_entries - 1).unwrap();
    for peer in [0, 1, 255, 256, 257, 3000, last] {
        let values = (0..nr_cpus().unwrap()).map(|cpu| PeerTraffic {
            tx_packets: u64::from(peer) + 1,
            bytes: PeerBytes {
                tx: [cpu as u64 * 100, 0],
                ..PeerBytes::default()
            },
            ..PeerTraffic::default()
        });
        let values = PerCpuValues::try_from(values.collect::<Vec<_>>()).unwrap();
        counted.set(peer.into(), values, 0).unwrap();
    }
    let maps = Maps::open(node.pins()).unwrap();
    for end in [0, 255, 256, 3000, last] {
        let found = maps.traffic_up_to(end).unwrap();
        let each: Vec<PeerTraffic> = (0..=end).map(|it| maps.traffic(it).unwrap()).collect();
        assert_eq!(found, each, "up to {end}");
    }
    assert!(maps.traffic(last).unwrap().tx_packets > u64::from(last));
}

#[test]
fn the_first_values_of_an_array_are_those_of_each_index() {
    let node = Node::new();
    let mut maps = Maps::open(node.pins()).unwrap();
    let last = maps::CANDIDATES.max_entries - 1;
    for index in [0, 1, 255, 256, 3000, last] {
        let path = Peer {
            ifindex: index + 1,
            ..Peer::default()
        };
        maps.candidates.set(index, path, 0).unwrap();
    }
    for count in [0, 1, 256, 257, 3001, last, last + 1, u32::MAX] {
        let found = first_values(&maps.candidates, count).unwrap();
        let each = (0..count.min(last + 1)).map(|it| maps.candidates.get(&it, 0).unwrap());
        assert_eq!(found, each.collect::<Vec<_>>(), "{count}");
    }
}

#[test]
fn all_addresses_and_routes_are_those_that_were_written() {
    let node = Node::new();
    let mut maps = Maps::open(node.pins()).unwrap();
    for peer in 0..MANY {
        let [high, low] = peer.to_be_bytes();
        let entry = NodeAddr {
            peer,
            ..NodeAddr::default()
        };
        let address = Addr([172, 16, high, low]);
        maps.node_addrs.insert(address, entry, 0).unwrap();
        let route = Route {
            peer,
            ..Route::default()
        };
        let network = Key::new(24, Addr([100, high, low, 0]));
        maps.routes.insert(&network, route, 0).unwrap();
    }
    let entries: BTreeMap<_, _> = maps.node_addrs.entries().unwrap().into_iter().collect();
    let each: BTreeMap<_, _> = maps.node_addrs.iter().map(Result::unwrap).collect();
    assert!(entries.len() >= usize::from(MANY) && entries == each);
    let by_key = |(key, route): (Key<Addr>, Route)| ((key.prefix_len(), key.data()), route);
    let entries: BTreeMap<_, _> = maps
        .routes
        .entries()
        .unwrap()
        .into_iter()
        .map(by_key)
        .collect();
    let each = maps.routes.iter().map(Result::unwrap);
    let each: BTreeMap<_, _> = each.map(by_key).collect();
    assert!(entries.len() >= usize::from(MANY) && entries == each);
}
