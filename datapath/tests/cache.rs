//! After any sequence of writes, the cache never contradicts the map behind it. Needs root and a BPF file system.

use aya::maps::{Array, MapData};
use ipip_abi::{Addr, Cached, Pod, maps};
use ipip_datapath::{AttachMode, Maps, Pins, load, open_map};
use ipip_testkit::scratch::ScratchPins;
use std::collections::BTreeMap;

/// Cache indexes that the tests use.
const INDEXES: u32 = 4;

fn cached(pins: &Pins) -> Vec<Cached<Pod>> {
    let array: Array<MapData, Cached<Pod>> = open_map(pins, &maps::POD_CACHE).unwrap();
    let all = (0..INDEXES).map(|index| array.get(&index, 0).unwrap());
    all.filter(|element| element.address != Addr::ZERO)
        .collect()
}

fn pod(ifindex: u32) -> Pod {
    Pod {
        ifindex,
        ..Pod::default()
    }
}

/// Three addresses for each cache index.
fn colliding() -> Vec<Addr> {
    let mut by_index: BTreeMap<u32, Vec<Addr>> = BTreeMap::new();
    for bits in (0..1 << 22).map(|number| 0x0a40_0000_u32 + number) {
        let address = Addr(bits.to_be_bytes());
        if address.cache_index() < INDEXES {
            by_index
                .entry(address.cache_index())
                .or_default()
                .push(address);
        }
    }
    let groups = by_index.into_values();
    groups.flat_map(|all| all.into_iter().take(3)).collect()
}

#[test]
fn a_cached_entry_is_that_of_the_map_also_when_addresses_share_an_index() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&pins).unwrap();
    let colliding = colliding();
    assert_eq!(colliding.len(), 12);
    let mut expected: BTreeMap<Addr, Pod> = BTreeMap::new();
    let mut random = 1_u64;
    for step in 0..200 {
        // Pseudo-random numbers (Knuth's multiplier), the same in every run.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let address = colliding[(random >> 33) as usize % colliding.len()];
        if random >> 62 == 0 && expected.remove(&address).is_some() {
            maps.pods.remove(&address).unwrap();
        } else {
            expected.insert(address, pod(step + 1));
            maps.pods.insert(address, pod(step + 1), 0).unwrap();
        }
        let found: BTreeMap<Addr, Pod> = maps.pods.iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(found, expected, "after step {step}");
        for element in cached(&pins) {
            assert_eq!(Some(&element.value), expected.get(&element.address));
        }
    }
    assert!(!cached(&pins).is_empty());
}

#[test]
fn an_address_that_fails_to_get_its_entry_is_not_cached_with_it() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&pins).unwrap();
    let address = colliding()[0];
    maps.pods.insert(address, pod(1), 0).unwrap();
    // BPF_NOEXIST: the map rejects the insertion and keeps the existing entry.
    maps.pods.insert(address, pod(2), 1).unwrap_err();
    assert_eq!(maps.pods.get(&address, 0).unwrap(), pod(1));
    let all = cached(&pins);
    assert!(all.iter().all(|element| element.value == pod(1)), "{all:?}");
}
