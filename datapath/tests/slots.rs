//! Whatever is written, a slot never says what the map behind it does not. Needs root and a BPF file system.

mod scratch;

use aya::maps::{Array, MapData};
use ipip_abi::{Addr, Pod, Slot, maps};
use ipip_datapath::{AttachMode, Maps, load, open};
use scratch::Scratch;
use std::collections::BTreeMap;

/// Places that the tests use.
const PLACES: u32 = 4;

fn slots(scratch: &Scratch) -> Vec<Slot<Pod>> {
    let array: Array<MapData, Slot<Pod>> = open(&scratch.0, &maps::POD_SLOTS).unwrap();
    let all = (0..PLACES).map(|index| array.get(&index, 0).unwrap());
    all.filter(|slot| slot.address != Addr::ZERO).collect()
}

fn pod(ifindex: u32) -> Pod {
    Pod {
        ifindex,
        ..Pod::default()
    }
}

/// Addresses of which three share each place.
fn crowd() -> Vec<Addr> {
    let mut by_place: BTreeMap<u32, Vec<Addr>> = BTreeMap::new();
    for bits in (0..1 << 22).map(|number| 0x0a40_0000_u32 + number) {
        let address = Addr(bits.to_be_bytes());
        if address.slot() < PLACES {
            by_place.entry(address.slot()).or_default().push(address);
        }
    }
    let places = by_place.into_values();
    places.flat_map(|all| all.into_iter().take(3)).collect()
}

#[test]
fn a_slot_has_what_the_map_has_whoever_shares_its_place() {
    let scratch = Scratch::new();
    load(&scratch.0, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&scratch.0).unwrap();
    let crowd = crowd();
    assert_eq!(crowd.len(), 12);
    let mut expected: BTreeMap<Addr, Pod> = BTreeMap::new();
    let mut random = 1_u64;
    for step in 0..200 {
        // Knuth's multiplier: numbers in no order, the same in every run.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let address = crowd[(random >> 33) as usize % crowd.len()];
        if random >> 62 == 0 && expected.remove(&address).is_some() {
            maps.pods.remove(&address).unwrap();
        } else {
            expected.insert(address, pod(step + 1));
            maps.pods.insert(address, pod(step + 1), 0).unwrap();
        }
        let found: BTreeMap<Addr, Pod> = maps.pods.iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(found, expected, "after step {step}");
        for slot in slots(&scratch) {
            assert_eq!(Some(&slot.value), expected.get(&slot.address));
        }
    }
    assert!(!slots(&scratch).is_empty());
}

#[test]
fn an_address_that_fails_to_get_its_entry_has_no_slot() {
    let scratch = Scratch::new();
    load(&scratch.0, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&scratch.0).unwrap();
    let address = crowd()[0];
    maps.pods.insert(address, pod(1), 0).unwrap();
    // BPF_NOEXIST: the map refuses what is there already, and keeps it.
    maps.pods.insert(address, pod(2), 1).unwrap_err();
    assert_eq!(maps.pods.get(&address, 0).unwrap(), pod(1));
    let all = slots(&scratch);
    assert!(all.iter().all(|slot| slot.value == pod(1)), "{all:?}");
}
