//! The traffic of all peers is read at once, also on kernels that read only one entry at a time.

use crate::fixture::*;
use aya::{
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use ipip_abi::{PeerBytes, PeerTraffic, maps};
use ipip_datapath::Maps;

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
