//! The cache of blocks never contradicts the trie. Needs root and a BPF file system.

use aya::maps::{Array, MapData, lpm_trie::Key};
use ipip_abi::{Addr, Cached, Route, maps};
use ipip_datapath::{AttachMode, Maps, Pins, load, open_map};
use ipip_testkit::scratch::ScratchPins;
use std::collections::BTreeMap;

type Table = BTreeMap<(u32, Addr), Route>;

fn cached(maps: &Maps) -> BTreeMap<Addr, Route> {
    maps.routes
        .cached_blocks()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn holds(prefix: &(u32, Addr), address: Addr) -> bool {
    let (len, network) = prefix;
    let mask = u32::MAX.checked_shl(32 - len).unwrap_or(0);
    address.to_bits() & mask == network.to_bits() & mask
}

/// The route of the longest prefix that contains `address`, by a linear search.
fn longest(table: &Table, address: Addr) -> Option<Route> {
    let holding = table.iter().filter(|(prefix, _)| holds(prefix, address));
    holding
        .max_by_key(|((len, _), _)| *len)
        .map(|(_, route)| *route)
}

/// The route that the programs find.
fn found(cache: &Array<MapData, Cached<Route>>, table: &Table, address: Addr) -> Option<Route> {
    let element = cache.get(&address.block_cache_index(), 0).unwrap();
    let cached = element.get(address.block()).copied();
    cached.or_else(|| longest(table, address))
}

/// The cache of blocks as the programs see it.
fn cache(pins: &Pins) -> Array<MapData, Cached<Route>> {
    open_map(pins, &maps::ROUTE_CACHE).unwrap()
}

fn key(len: u32, address: [u8; 4]) -> Key<Addr> {
    Key::new(len, Addr(address))
}

#[test]
fn a_block_is_cached_exactly_while_one_24_alone_decides_it() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&pins).unwrap();
    let block = Addr([10, 42, 2, 0]);
    let (b, c) = (Route::new(1, Route::PODS), Route::new(2, Route::NODE));
    maps.routes.insert(&key(16, [10, 42, 0, 0]), c, 0).unwrap();
    assert!(cached(&maps).is_empty(), "a larger prefix is no block");
    maps.routes.insert(&key(24, block.0), b, 0).unwrap();
    assert_eq!(cached(&maps), BTreeMap::from([(block, b)]));
    maps.routes.insert(&key(32, [10, 42, 2, 7]), c, 0).unwrap();
    maps.routes.insert(&key(28, [10, 42, 2, 16]), c, 0).unwrap();
    assert!(cached(&maps).is_empty(), "longer prefixes lie inside");
    maps.routes.remove(&key(32, [10, 42, 2, 7])).unwrap();
    assert!(cached(&maps).is_empty(), "one still does");
    maps.routes.remove(&key(28, [10, 42, 2, 16])).unwrap();
    assert_eq!(cached(&maps), BTreeMap::from([(block, b)]));
    maps.routes.insert(&key(24, block.0), c, 0).unwrap();
    assert_eq!(cached(&maps), BTreeMap::from([(block, c)]));
    maps.routes.remove(&key(24, block.0)).unwrap();
    assert!(cached(&maps).is_empty());
}

#[test]
fn after_any_sequence_of_writes_a_lookup_finds_the_longest_prefix() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let mut maps = Maps::open(&pins).unwrap();
    let cache = cache(&pins);
    let mut table = Table::new();
    let mut random = 1_u64;
    for step in 0..600 {
        // Pseudo-random numbers (Knuth's multiplier), the same in every run.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let [_, _, _, a, b, c, peer, _] = random.to_be_bytes();
        let len = [16, 22, 24, 24, 24, 25, 30, 32][usize::from(a % 8)];
        let address = Addr([10, 42, b % 4, c & 0xf0]);
        let mask = u32::MAX << (32 - len);
        let network = Addr((address.to_bits() & mask).to_be_bytes());
        if table.contains_key(&(len, network)) && peer % 2 == 0 {
            maps.routes.remove(&Key::new(len, network)).unwrap();
            table.remove(&(len, network));
        } else {
            let route = Route::new(u16::from(peer), Route::PODS);
            maps.routes
                .insert(&Key::new(len, network), route, 0)
                .unwrap();
            table.insert((len, network), route);
        }
        for probe in 0..=255 {
            let address = Addr([10, 42, probe % 4, probe]);
            assert_eq!(
                found(&cache, &table, address),
                longest(&table, address),
                "{address} after step {step}"
            );
        }
    }
}

#[test]
fn the_next_writer_repairs_cached_blocks_that_a_dead_one_left() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let (b, c) = (Route::new(1, Route::PODS), Route::new(2, Route::PODS));
    let mut maps = Maps::open(&pins).unwrap();
    let (lost, wrong, stale) = ([10, 42, 2, 0], [10, 42, 3, 0], Addr([10, 42, 9, 0]));
    maps.routes.insert(&key(24, lost), b, 0).unwrap();
    maps.routes.insert(&key(24, wrong), b, 0).unwrap();
    let mut raw = cache(&pins);
    let mut put = |block: Addr, element| raw.set(block.block_cache_index(), element, 0).unwrap();
    put(Addr(lost), Cached::default());
    let [wrong_element, stale_element] =
        [Addr(wrong), stale].map(|address| Cached { address, value: c });
    put(Addr(wrong), wrong_element);
    put(stale, stale_element);

    let mut next = Maps::open(&pins).unwrap();
    next.routes.insert(&key(24, [10, 42, 4, 0]), c, 0).unwrap();
    let expected = [(lost, b), (wrong, b), ([10, 42, 4, 0], c)];
    assert_eq!(
        cached(&next),
        expected.map(|(block, route)| (Addr(block), route)).into()
    );
}
