//! `ipipctl` with real datapaths in the kernel, each pinned at its own root.

use ipip_abi::{Addr, Encapsulation, Flow, FlowKey, Mac, Pod, RouteKey, maps};
use ipip_datapath::{AttachMode, Maps, Programs, load};
use ipip_testkit::{
    node_maps::{NodeMaps, NodePeer, PeerPath},
    scratch::ScratchPins,
    test_ns::TestNs,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::{
    io::Read,
    process::{Command, Output, Stdio},
    thread,
};

/// A pinned datapath that is removed when its test ends.
struct Datapath(ScratchPins);

impl Datapath {
    fn new() -> Self {
        let datapath = Self(ScratchPins::new());
        load(&datapath.0, AttachMode::Auto).expect("loads (root, bpffs at /sys/fs/bpf)");
        datapath
    }

    fn maps(&self) -> Maps {
        Maps::open(&self.0).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ipipctl"));
        command.arg("--pin-root").arg(self.0.root()).args(args);
        command
    }

    fn text(&self, args: &[&str]) -> String {
        stdout(self.command(args).output().unwrap())
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.text(&[args, &["-o", "json"]].concat())).unwrap()
    }
}

fn stdout(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Node a1 with a peer b1 and an unreachable peer c1.
fn fill(maps: &mut Maps) {
    let pods = |last| RouteKey::new(Addr([10, 42, last, 0]), 24);
    let underlay = Addr([203, 0, 113, 21]);
    let path = PeerPath {
        next_hop: Some(Mac([2, 0, 0, 0, 0, 1])),
        ..PeerPath::new(underlay, Encapsulation::Udp, 1)
    };
    let mut node = NodeMaps::new("a1", Addr([10, 0, 0, 11]), pods(1))
        .configure(|config| {
            config.udp_port = 5555_u16.to_be_bytes();
            config.ipip0_ifindex = 1;
        })
        .peer(NodePeer::new(2, "c1", pods(3)))
        .peer(NodePeer::new(1, "b1", pods(2)).path(path));
    for last in [9, 5, 7] {
        node = node.pod(Addr([10, 42, 1, last]), Pod::default());
    }
    node.write(maps).unwrap();
    let (pod, node) = (Addr([10, 42, 1, 5]), Addr([10, 0, 0, 21]));
    let (key, from_low) = FlowKey::canonical(pod, [0x90, 1], node, [0, 80], 6);
    let flow = Flow::new(from_low);
    maps.flows.insert(key, flow, 0).unwrap();
}

#[test]
fn an_empty_datapath_is_dumped_with_every_map() {
    let datapath = Datapath::new();
    let dump = datapath.json(&["dump"]);
    let names: Vec<_> = dump.as_array().unwrap().iter().map(|m| &m["map"]).collect();
    let wanted: Vec<_> = maps::ALL.iter().map(|m| m.name).collect();
    assert_eq!(names, wanted);

    assert_eq!(datapath.text(&["dump", "pods"]), "(none)\n");
    assert_eq!(datapath.json(&["dump", "routes"]), Value::Array(vec![]));
    assert_eq!(datapath.text(&["drops"]), "no packet was dropped\n");
    assert_eq!(datapath.json(&["peers"]), Value::Array(vec![]));
    let status = datapath.json(&["status"]);
    assert_eq!(status["configured"], false);
    assert_eq!(status["node"], Value::Null);
}

#[test]
fn a_filled_datapath_is_dumped_by_name_and_in_the_order_of_the_keys() {
    let datapath = Datapath::new();
    fill(&mut datapath.maps());
    let column = |map: &str, field: &str| {
        let entries = datapath.json(&["dump", map]);
        let entries = entries.as_array().unwrap().iter();
        entries.map(|e| e[field].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        column("PODS", "address"),
        ["10.42.1.5", "10.42.1.7", "10.42.1.9"]
    );
    assert_eq!(
        column("ROUTES", "prefix"),
        ["10.42.1.0/24", "10.42.2.0/24", "10.42.3.0/24"]
    );
    assert_eq!(column("routes", "node"), ["a1", "b1", "c1"]);
    assert_eq!(column("PEERS", "encapsulation"), ["udp"]);
    assert_eq!(
        column("PEER_INFO", "state"),
        ["OwnNode", "Reachable", "NoPublicEndpoint"]
    );
    assert_eq!(column("CONFIG", "udpPort"), [5555]);
    assert_eq!(column("NODE_ADDRS", "node"), ["a1", "b1"]);
    assert_eq!(column("FLOWS", "source"), ["10.42.1.5"]);
    assert_eq!(column("FLOWS", "destinationPort"), [80]);
}

#[test]
fn peers_and_status_show_an_unreachable_peer_with_the_reason() {
    let datapath = Datapath::new();
    fill(&mut datapath.maps());
    let peers = datapath.json(&["peers"]);
    assert_eq!(peers.as_array().map(Vec::len), Some(2));
    assert_eq!(peers[0]["node"], "b1");
    assert_eq!(peers[0]["prefixes"][0], "10.42.2.0/24");
    assert_eq!(peers[0]["nextHopMac"], "02:00:00:00:00:01");
    assert_eq!(peers[1]["state"], "NoPublicEndpoint");
    let status = datapath.json(&["status"]);
    assert_eq!(status["peersReachable"], 1);
    assert_eq!(status["peersUnreachable"][0]["node"], "c1");
    assert_eq!(status["pods"], 3);
    let text = datapath.text(&["status"]);
    assert!(text.contains("node         a1"), "{text}");
    // Index 1 is `lo`, as in a network namespace other than the node's.
    let warnings = status["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(text.contains("warning: interface ipip0"), "{text}");
}

#[test]
fn status_shows_attached_programs() {
    let datapath = Datapath::new();
    // A new network namespace for the thread, so that no interface of the machine is changed.
    thread::scope(|scope| {
        let attached = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut programs = Programs::open(&datapath.0, AttachMode::Auto).unwrap();
            programs.attach_uplink("lo").unwrap();
            let attached = datapath.json(&["status"])["attached"].clone();
            programs.detach("lo").unwrap();
            attached
        });
        let attached = attached.join().unwrap();
        assert_eq!(attached.as_array().map(Vec::len), Some(1));
        assert_eq!(attached[0]["interface"], "lo");
        assert_eq!(attached[0]["program"], "from_uplink");
        assert_eq!(attached[0]["defunct"], false);
    });
}

#[test]
fn a_map_whose_entries_are_not_shown_says_why() {
    let datapath = Datapath::new();
    for map in ["ANSWERS", "EVENTS", "EVENT_BUDGET"] {
        let text = datapath.text(&["dump", map]);
        assert!(text.contains("no entries to show"), "{text}");
        assert_eq!(datapath.json(&["dump", map]), Value::Array(vec![]));
    }
}

#[test]
fn drops_with_all_shows_every_reason() {
    let datapath = Datapath::new();
    let all = datapath.json(&["drops", "--all"]);
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), ipip_abi::DropReason::ALL.len());
    assert_eq!(all[0]["reason"], "UnknownPeer");
    assert_eq!(all[0]["packets"], 0);
}

#[test]
fn without_a_datapath_the_exit_code_is_3_and_the_error_has_a_remedy() {
    let pins = ScratchPins::new();
    let root = pins.root();
    let output = Command::new(env!("CARGO_BIN_EXE_ipipctl"))
        .args(["status", "--pin-root"])
        .arg(root)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("start ipip-agent"), "{error}");
    assert!(error.contains(root.to_str().unwrap()), "{error}");
    assert!(!error.contains('\u{1b}'), "no colours when piped: {error}");
}

#[test]
fn ip_netns_exec_hides_the_datapath_and_the_error_names_nsenter() {
    let datapath = Datapath::new();
    let namespace = TestNs::new();
    let status = |enter: &mut Command| {
        let command = datapath.command(&["status"]);
        let enter = enter.arg(command.get_program()).args(command.get_args());
        enter.output().unwrap()
    };
    let hidden = status(Command::new("ip").args(["netns", "exec", namespace.name()]));
    assert_eq!(hidden.status.code(), Some(3));
    let error = String::from_utf8(hidden.stderr).unwrap();
    assert!(error.contains("nsenter --net="), "{error}");
    let net = format!("--net={}", namespace.path().display());
    let shown = stdout(status(Command::new("nsenter").arg(net)));
    assert!(shown.contains("ABI version"), "{shown}");
}

#[test]
fn a_datapath_of_another_version_is_reported_as_such() {
    let pins = ScratchPins::new();
    let root = pins.root();
    std::fs::create_dir_all(root.join("v9999")).unwrap();
    std::os::unix::fs::symlink("v9999", root.join("current")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ipipctl"))
        .args(["peers", "--pin-root"])
        .arg(root)
        .output()
        .unwrap();
    std::fs::remove_dir_all(root).unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("version 9999"), "{error}");
}

#[test]
fn a_reader_that_closes_the_pipe_early_is_no_error() {
    let datapath = Datapath::new();
    let mut child = datapath
        .command(&["dump"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{error}");
    assert_eq!(error, "");
}

#[test]
fn the_error_for_an_unknown_map_names_all_maps() {
    let output = Command::new(env!("CARGO_BIN_EXE_ipipctl"))
        .args(["dump", "pod"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("PEER_INFO"), "{error}");
}
