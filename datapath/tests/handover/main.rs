//! One ABI version takes over from another one, under traffic. Needs root and a BPF file system.
//!
//! The other version is this one with another number: its folder is renamed. The tests `upgrade` of the area e2e have
//! two versions that differ.

#[path = "../hooks/mod.rs"]
mod hooks;
mod node;
#[path = "../support/mod.rs"]
mod support;
#[path = "../two_nodes/mod.rs"]
mod two_nodes;

use aya::{
    maps::{HashMap, MapData},
    programs::{ProgramInfo, TcAttachType},
};
use hooks::attached_to;
use ipip_abi::{
    Addr, Flow, FlowKey, Mac, Pod, Program,
    handover::{PodKey, PodRecord},
    maps,
};
use ipip_datapath::{
    AttachMode, Error, LoadOutcome, Maps, Pins, Pods, Programs, load, open_map, remove, take_over,
};
use ipip_testkit::{sequence::Sequence, wait::within};
use node::{fill, nodes};
use std::{
    env, fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use support::modes;
use two_nodes::{OnePodNode, pod_address};
use zerocopy::{FromBytes, IntoBytes};

/// Names the pin root and the attach mode to the process that is killed.
const ROOT: &str = "IPIP_TEST_HANDOVER_ROOT";
const MODE: &str = "IPIP_TEST_HANDOVER_MODE";
/// How many handovers are killed with each attach mode.
const KILLS: &str = "IPIP_HANDOVER_KILLS";
const PER_SECOND: u64 = 10_000;

#[test]
fn programs_of_another_version_stay_until_maps_are_filled_and_are_replaced_in_place() {
    for mode in modes() {
        let [node, _other] = nodes(mode);
        let old = hooked(&node, mode);
        node.become_the_other_version();

        let outcome = node.host.run(|| load(&node.pins, mode)).unwrap();
        assert_eq!(
            outcome.unwrap(),
            LoadOutcome::Waits { current: 1 },
            "{mode}"
        );
        assert_eq!(hooked(&node, mode), old, "{mode}");
        let attached = node.host.run(|| {
            let mut programs = Programs::open(&node.pins, mode).unwrap();
            programs.attach_uplink("uplink")
        });
        assert!(is_other_version(&attached.unwrap()), "{mode}");
        let added = Programs::open_for_pods(&node.pins, mode).map(drop);
        assert!(is_other_version(&added), "{mode}");
        assert_eq!(Maps::open(&node.pins).unwrap().pods.iter().count(), 0);

        node.host
            .run(|| take_over(&node.pins, mode))
            .unwrap()
            .unwrap();
        expect_one_version(&node, mode);
        assert!(hooked(&node, mode).iter().all(|it| !old.contains(it)));
        let again = node.host.run(|| load(&node.pins, mode)).unwrap();
        assert_eq!(again.unwrap(), LoadOutcome::Adopted, "{mode}");
    }
}

fn is_other_version(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::OtherVersion { found: 1, .. }))
}

/// The programs that the kernel runs on each of the node's three hooks.
fn on_hooks(node: &OnePodNode, mode: AttachMode) -> [Vec<u32>; 3] {
    let hooks = [
        ("veth", TcAttachType::Ingress),
        ("veth", TcAttachType::Egress),
        ("uplink", TcAttachType::Ingress),
    ];
    hooks.map(|(ifname, hook)| node.host.run(|| attached_to(ifname, mode, hook)).unwrap())
}

/// The program on each of the node's three hooks. Each has one.
fn hooked(node: &OnePodNode, mode: AttachMode) -> Vec<u32> {
    let found = on_hooks(node, mode);
    assert!(found.iter().all(|it| it.len() == 1), "{mode}: {found:?}");
    found.concat()
}

/// Expects that only this version is pinned, that its programs are on each hook, and that it knows the pod.
fn expect_one_version(node: &OnePodNode, mode: AttachMode) {
    let own = [Program::FromPod, Program::ToPod, Program::FromUplink].map(|program| {
        let info = ProgramInfo::from_pin(node.pins.program(program));
        info.unwrap().id()
    });
    assert_eq!(hooked(node, mode), own, "{mode}");
    let folder = node.pins.version_dir();
    assert_eq!(
        node.versions(),
        [folder.file_name().unwrap().to_str().unwrap()],
        "{mode}"
    );
    let pods = Maps::open(&node.pins).unwrap().pods;
    let pods: Vec<(Addr, Pod)> = pods.iter().collect::<Result<_, _>>().unwrap();
    let wanted = [(pod_address(node.number).into(), node.entry())];
    assert_eq!(pods, wanted, "{mode}");
}

#[test]
fn a_program_that_only_the_other_version_has_is_detached() {
    for mode in modes() {
        let suffix = if mode == AttachMode::Clsact {
            "@clsact"
        } else {
            ""
        };
        let [node, _other] = nodes(mode);
        let links = node.pins.links();
        // A link of the other version on a hook that this version does not use.
        let rename = |from, to| {
            let path = |name| links.join(format!("{name}{suffix}"));
            fs::rename(path(from), path(to)).unwrap();
        };
        rename("veth@to_pod", "veth@to_pod_of_next");
        node.become_the_other_version();
        node.host
            .run(|| -> Result<(), Error> {
                load(&node.pins, mode)?;
                fill(node.number, &node.pins);
                take_over(&node.pins, mode)
            })
            .unwrap()
            .unwrap();
        let names = fs::read_dir(&links).unwrap();
        let names: Vec<_> = names.map(|it| it.unwrap().file_name()).collect();
        assert!(
            names
                .iter()
                .all(|it| !it.to_string_lossy().contains("next")),
            "{mode}: {names:?}"
        );
    }
}

#[test]
fn removal_detaches_the_programs_of_every_version_and_leaves_nothing() {
    for mode in modes() {
        let [node, _other] = nodes(mode);
        node.become_the_other_version();
        let loaded = node.host.run(|| load(&node.pins, mode)).unwrap();
        assert_eq!(loaded.unwrap(), LoadOutcome::Waits { current: 1 }, "{mode}");
        node.host.run(|| remove(&node.pins)).unwrap().unwrap();
        assert!(!node.pins.root().exists(), "{mode}");
        // The kernel ends a link only after an RCU grace period.
        let gone = || on_hooks(&node, mode).concat().is_empty();
        let what = format!("{mode}: no program is attached");
        within(Duration::from_secs(1), &what, || Ok(gone())).unwrap();
    }
}

#[test]
fn an_entry_whose_pod_another_versions_plugin_deleted_is_removed() {
    let [node, _other] = nodes(AttachMode::Auto);
    let alive = Addr::from(pod_address(1));
    let deleted = Addr([10, 42, 1, 9]);
    let entry = Pod {
        ifindex: 9999,
        ..node.entry()
    };
    let in_host = || {
        let mut pods = Pods::open(&node.pins).unwrap();
        pods.insert(deleted, entry, 0).unwrap();
        // The plugin of another version knows only the record.
        pods.remove_record(deleted).unwrap();
        assert_eq!(pods.reconcile(&node.pins).unwrap(), [deleted]);
        let left: Vec<Addr> = pods.keys().collect::<Result<_, _>>().unwrap();
        assert_eq!(left, [alive]);
    };
    node.host.run(in_host).unwrap();
}

#[test]
fn a_pods_new_mac_is_recorded_and_the_fields_of_other_versions_stay() {
    let [node, _other] = nodes(AttachMode::Auto);
    let address = Addr::from(pod_address(1));
    let mut records: HashMap<MapData, PodKey, PodRecord> =
        open_map(&node.pins, &maps::POD_RECORDS).unwrap();
    let key = PodKey::from(address);
    // The field of a newer version, behind those of this one.
    let mut bytes: [u8; PodRecord::LEN] =
        records.get(&key, 0).unwrap().as_bytes().try_into().unwrap();
    bytes[28..32].copy_from_slice(&[77, 2, 1, 1]);
    let record = PodRecord::read_from_bytes(&bytes).unwrap();
    records.insert(key, record, 0).unwrap();

    let mut entries: HashMap<MapData, Addr, Pod> = open_map(&node.pins, &maps::PODS).unwrap();
    let moved = Pod {
        mac: Mac([2, 0, 0, 0, 0, 7]),
        ..node.entry()
    };
    entries.insert(address, moved, 0).unwrap();
    let mut pods = Pods::open(&node.pins).unwrap();
    assert!(pods.reconcile(&node.pins).unwrap().is_empty());
    let record = records.get(&key, 0).unwrap();
    assert_eq!(record.pod(), Some(moved));
    assert_eq!(record.field(77), Some(&[1, 1][..]));
}

#[test]
fn a_handover_that_is_killed_at_any_instant_loses_no_packet() {
    if let (Ok(root), Ok(mode)) = (env::var(ROOT), env::var(MODE)) {
        hand_over(&Pins::new(root), mode.parse().unwrap());
        return;
    }
    let kills = env::var(KILLS).map_or(3, |it| it.parse().unwrap());
    for mode in modes() {
        let nodes = nodes(mode);
        let flow = a_flow(&nodes[0]);
        let streams = [(0, 1), (1, 0)].map(|(from, to)| stream(&nodes[from], &nodes[to]));
        let node = &nodes[0];
        for stream in &streams {
            stream.wait_for(100).unwrap();
        }
        node.become_the_other_version();
        let began = Instant::now();
        expect_success(start_handover(node, mode));
        let duration = began.elapsed();
        for kill in 0..kills {
            node.become_the_other_version();
            let mut killed = start_handover(node, mode);
            thread::sleep(duration * kill / kills);
            killed.kill().unwrap();
            killed.wait().unwrap();
            hooked(node, mode);
            if kill % 2 == 1 {
                // The older version takes over from the newer one, which is half done.
                node.exchange_versions();
            }
            expect_success(start_handover(node, mode));
            expect_one_version(node, mode);
        }
        for stream in streams {
            let tallied = stream.stop().unwrap();
            assert!(tallied.sent > 100, "{mode}: {tallied:?}");
            assert_eq!(
                (tallied.lost(), tallied.duplicates),
                (0, 0),
                "{mode}: {tallied:?}"
            );
        }
        let flows = Maps::open(&node.pins).unwrap().flows;
        assert_eq!(flows.get(&flow, 0).unwrap(), Flow::new(true), "{mode}");
    }
}

/// Takes over as an agent does. Runs in the process that is killed, in the node's namespace.
fn hand_over(pins: &Pins, mode: AttachMode) {
    if let LoadOutcome::Waits { .. } = load(pins, mode).unwrap() {
        fill(1, pins);
        take_over(pins, mode).unwrap();
    }
}

fn start_handover(node: &OnePodNode, mode: AttachMode) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "a_handover_that_is_killed_at_any_instant_loses_no_packet",
            "--nocapture",
        ])
        .env(ROOT, node.pins.root())
        .env(MODE, mode.to_string())
        .stdout(Stdio::null());
    node.host.run(|| command.spawn()).unwrap().unwrap()
}

fn expect_success(mut handover: Child) {
    assert!(handover.wait().unwrap().success());
}

/// Numbered packets from one pod to the other.
fn stream(from: &OnePodNode, to: &OnePodNode) -> Sequence {
    let (sending, receiving) = (from.socket(0), to.socket(7000));
    sending.connect((pod_address(to.number), 7000)).unwrap();
    Sequence::between(sending, receiving, PER_SECOND).unwrap()
}

/// Records a flow.
fn a_flow(node: &OnePodNode) -> FlowKey {
    let (low, high) = (Addr([10, 42, 1, 2]), Addr([10, 96, 0, 1]));
    let (key, _) = FlowKey::canonical(low, [0x90, 1], high, [0, 80], 6);
    let mut flows = Maps::open(&node.pins).unwrap().flows;
    flows.insert(key, Flow::new(true), 0).unwrap();
    key
}
