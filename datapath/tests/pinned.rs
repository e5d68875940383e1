//! The pinned datapath on the real kernel. Needs root and a BPF file system.

mod scratch;

use ipip_abi::{Addr, Counter, Pod, maps};
use ipip_datapath::{AttachMode, Error, LoadOutcome, Maps, Pins, load, remove};
use scratch::Scratch;

#[test]
fn a_datapath_is_created_then_adopted_with_its_entries() {
    let scratch = Scratch::new();
    assert_eq!(
        load(&scratch.0, AttachMode::Auto).unwrap(),
        LoadOutcome::Created
    );
    let address = Addr([10, 42, 1, 2]);
    let pod = Pod {
        ifindex: 7,
        ..Pod::default()
    };
    Maps::open(&scratch.0)
        .unwrap()
        .pods
        .insert(address, pod, 0)
        .unwrap();

    assert_eq!(
        load(&scratch.0, AttachMode::Auto).unwrap(),
        LoadOutcome::Adopted
    );
    let maps = Maps::open(&scratch.0).unwrap();
    assert_eq!(maps.pods.get(&address, 0).unwrap(), pod);
    assert_eq!(maps.tally_counter(Counter::PodToPod).unwrap().packets, 0);
}

#[test]
fn opening_where_nothing_is_pinned_says_so() {
    let scratch = Scratch::new();
    assert!(matches!(Maps::open(&scratch.0), Err(Error::NotPinned(_))));
}

#[test]
fn a_root_outside_bpffs_is_refused() {
    let error = load(&Pins::new("/tmp/ipip-not-bpffs"), AttachMode::Auto).unwrap_err();
    assert!(matches!(error, Error::NotBpffs(_)), "{error}");
}

#[test]
fn after_removal_nothing_is_pinned_and_a_second_removal_is_fine() {
    let scratch = Scratch::new();
    load(&scratch.0, AttachMode::Auto).unwrap();
    remove(&scratch.0).unwrap();
    assert!(!scratch.0.root().exists());
    remove(&scratch.0).unwrap();
}

#[test]
fn every_map_is_pinned_with_the_size_of_the_abi() {
    let scratch = Scratch::new();
    load(&scratch.0, AttachMode::Auto).unwrap();
    for spec in maps::ALL {
        let info = aya::maps::MapInfo::from_pin(scratch.0.maps().join(spec.name)).unwrap();
        assert_eq!(info.max_entries(), spec.max_entries, "{}", spec.name);
    }
}
