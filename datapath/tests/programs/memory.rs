//! Kernel memory of the maps.

use crate::fixture::{Node, addr};
use ipip_abi::{Flow, FlowKey, maps};
use std::{fs, path::Path};

/// Bound on the kernel memory of a node's maps, in MiB. The decision record states the same number.
const MAX_MIB: u64 = 78;
const DECISION: &str = include_str!("../../../docs/decisions/0001-bounded-map-memory.md");
/// CPUs for which the per-CPU maps are counted: a large node.
const CPUS: u64 = 128;
/// Bytes of an entry of a per-CPU array that do not depend on the number of CPUs: a pointer to the values.
const POINTER: u64 = 8;

/// Bytes that the kernel accounts to a pinned map (`memlock` in its fdinfo).
fn kernel_bytes(pin: &Path) -> u64 {
    use std::os::fd::{AsFd, AsRawFd};
    let map = aya::maps::MapData::from_pin(pin).expect("the map is pinned");
    let fd = map.fd().as_fd().as_raw_fd();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .expect("memlock");
    line.trim().parse().expect("a number")
}

#[test]
fn full_maps_of_a_large_node_fit_the_bound() {
    let mut node = Node::new();
    // The trie allocates memory for each entry, so fill it.
    for index in 0..maps::ROUTES.max_entries {
        let [_, a, b, c] = index.to_be_bytes();
        let key = aya::maps::lpm_trie::Key::new(32, ipip_abi::Addr([11, a, b, c]));
        if node
            .maps
            .routes
            .insert(&key, ipip_abi::Route::new(1, 1), 0)
            .is_err()
        {
            break;
        }
    }
    // The records of pods, too.
    for index in 0..maps::MAX_PODS {
        let [_, a, b, c] = index.to_be_bytes();
        let address = ipip_abi::Addr([11, a, b, c]);
        if node
            .maps
            .pods
            .insert(address, ipip_abi::Pod::default(), 0)
            .is_err()
        {
            break;
        }
    }
    let cpus = fs::read_to_string("/sys/devices/system/cpu/possible").expect("CPUs");
    let last: u64 = cpus
        .trim()
        .rsplit(['-', ','])
        .next()
        .unwrap()
        .parse()
        .expect("a CPU list");
    let mut total = 0;
    println!(
        "{:<13} {:>9} {:>12} {:>12}",
        "map", "entries", "bytes here", "128 CPUs"
    );
    for spec in maps::ALL {
        let here = kernel_bytes(&node.pins().map(spec));
        let large = match spec.kind {
            maps::Kind::PerCpuArray => {
                let pointers = POINTER * u64::from(spec.max_entries);
                pointers + (here - pointers) * CPUS / (last + 1)
            }
            _ => here,
        };
        println!(
            "{:<13} {:>9} {here:>12} {large:>12}",
            spec.name, spec.max_entries
        );
        total += large;
    }
    println!("total {:.1} MiB", total as f64 / f64::from(1 << 20));
    assert!(
        total <= MAX_MIB << 20,
        "{total} bytes are more than {MAX_MIB} MiB"
    );
}

#[test]
fn the_documented_bound_is_the_enforced_one() {
    assert!(DECISION.contains(&format!("at most {MAX_MIB} MiB")));
}

#[test]
fn the_flow_map_takes_more_flows_than_it_has_room_for() {
    let mut node = Node::new();
    for index in 0..maps::FLOWS.max_entries + 1000 {
        let [_, a, b, c] = index.to_be_bytes();
        let (key, _) = FlowKey::canonical(
            ipip_abi::Addr([11, a, b, c]),
            [0, 1],
            addr("10.42.1.2"),
            [0, 80],
            6,
        );
        node.maps
            .flows
            .insert(key, Flow::new(true), 0)
            .expect("the flow that was unused for longest makes room");
    }
}
