//! The pinned datapath on the real kernel. Needs root and a BPF file system.

use ipip_abi::{Addr, Counter, Pod, maps};
use ipip_datapath::{AttachMode, Error, LoadOutcome, Maps, Pins, load, remove};
use ipip_testkit::scratch::ScratchPins;

#[test]
fn a_datapath_is_created_then_adopted_with_its_entries() {
    let pins = ScratchPins::new();
    assert_eq!(load(&pins, AttachMode::Auto).unwrap(), LoadOutcome::Created);
    let address = Addr([10, 42, 1, 2]);
    let pod = Pod {
        ifindex: 7,
        ..Pod::default()
    };
    Maps::open(&pins)
        .unwrap()
        .pods
        .insert(address, pod, 0)
        .unwrap();

    assert_eq!(load(&pins, AttachMode::Auto).unwrap(), LoadOutcome::Adopted);
    let maps = Maps::open(&pins).unwrap();
    assert_eq!(maps.pods.get(&address, 0).unwrap(), pod);
    assert_eq!(maps.tally_counter(Counter::PodToPod).unwrap().packets, 0);
}

#[test]
fn maps_that_are_not_pinned_are_reported_so() {
    let pins = ScratchPins::new();
    assert!(matches!(Maps::open(&pins), Err(Error::NotPinned(_))));
}

#[test]
fn a_root_outside_bpffs_is_rejected() {
    let error = load(&Pins::new("/tmp/ipip-not-bpffs"), AttachMode::Auto).unwrap_err();
    assert!(matches!(error, Error::NotBpffs(_)), "{error}");
}

#[test]
fn after_removal_nothing_is_pinned_and_a_second_removal_is_no_error() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    remove(&pins).unwrap();
    assert!(!pins.root().exists());
    remove(&pins).unwrap();
}

#[test]
fn every_map_is_pinned_with_the_size_of_the_abi() {
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    for spec in maps::ALL {
        let info = aya::maps::MapInfo::from_pin(pins.maps().join(spec.name)).unwrap();
        assert_eq!(info.max_entries(), spec.max_entries, "{}", spec.name);
    }
}
