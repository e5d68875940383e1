//! The pinned datapath on the real kernel. Needs root and a BPF file system.

use ipip_abi::{Addr, Counter, Pod, maps};
use ipip_datapath::{AttachMode, Error, LoadOutcome, Maps, Pins, load, remove};
use ipip_testkit::scratch::ScratchPins;
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};
use std::{env, process::Command};

/// Names the pin root to the process in which a test runs again with few rights.
const FEW_RIGHTS: &str = "IPIP_TEST_FEW_RIGHTS";

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

/// Linux before 5.11 charges maps and programs to RLIMIT_MEMLOCK, by default 64 KiB, and the agent's container may not
/// raise it.
#[test]
fn with_the_rights_of_its_container_the_agent_adopts_what_prepare_has_loaded() {
    if let Some(root) = env::var_os(FEW_RIGHTS) {
        drop_rights();
        assert_eq!(
            load(&Pins::new(root), AttachMode::Auto).unwrap(),
            LoadOutcome::Adopted
        );
        return;
    }
    let pins = ScratchPins::new();
    load(&pins, AttachMode::Auto).unwrap();
    let name = "with_the_rights_of_its_container_the_agent_adopts_what_prepare_has_loaded";
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(FEW_RIGHTS, pins.root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Leaves this thread the capabilities of the DaemonSet, and the process containerd's limit of locked memory.
fn drop_rights() {
    let limit = Some(64 << 10);
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Memlock, limit).unwrap();
    let kept = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::PERFMON;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).unwrap();
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
        let info = aya::maps::MapInfo::from_pin(pins.map(spec)).unwrap();
        assert_eq!(info.max_entries(), spec.max_entries, "{}", spec.name);
    }
}
