//! The agent as a process: settings, log, readiness, exit.

use ipip_testkit::{
    http::{self, Response},
    test_ns::TestNs,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_ipip-agent");
/// The default of `health`.
const HEALTH: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9878);
const INVENTORY: &str = include_str!("../../manifests/inventory.yaml");

/// A simulated host: a network namespace, a folder, and a pin root.
struct AgentHost {
    netns: TestNs,
    folder: TempDir,
}

impl AgentHost {
    fn new() -> Self {
        Self {
            netns: TestNs::host(),
            folder: TempDir::new().unwrap(),
        }
    }

    fn sh(&self, script: &str) {
        self.netns.sh(script);
    }

    fn inventory(&self) -> PathBuf {
        self.folder.path().join("inventory.yaml")
    }

    fn pin_root(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.netns.name())
    }

    fn agent(&self) -> Command {
        let mut command = Command::new(AGENT);
        command
            // The agent's image has no other programs.
            .env_clear()
            .env("PATH", "/nowhere")
            .env("IPIP_RUN_DIR", self.folder.path().join("run"))
            .args(["--node-name", "a1", "--inventory"])
            .arg(self.inventory())
            .arg("--pin-root")
            .arg(self.pin_root())
            .arg("--state-dir")
            .arg(self.folder.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self.agent();
        self.netns
            .run(|| command.args(args).output())
            .unwrap()
            .unwrap()
    }

    fn start(&self, args: &[&str]) -> Running<'_> {
        let log = self.folder.path().join("log");
        let mut command = self.agent();
        command.args(args).stderr(fs::File::create(&log).unwrap());
        let child = self.netns.run(|| command.spawn()).unwrap().unwrap();
        Running {
            host: self,
            child,
            log,
        }
    }

    fn has_program(&self, ifname: &str) -> bool {
        let pins = ipip_datapath::Pins::new(self.pin_root());
        let list =
            || ipip_datapath::Programs::open(&pins, ipip_datapath::AttachMode::Auto)?.attached();
        let attached = self.netns.run(list).unwrap().unwrap();
        attached.iter().any(|it| it.ifname == ifname && !it.defunct)
    }

    #[track_caller]
    fn wait(&self, happened: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !happened() {
            assert!(Instant::now() < deadline, "it did not happen in 20 seconds");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The answer of the health endpoint.
    fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.netns.run(|| http::get_here(HEALTH, path)).unwrap()
    }
}

impl Drop for AgentHost {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.pin_root());
    }
}

struct Running<'a> {
    host: &'a AgentHost,
    child: Child,
    log: PathBuf,
}

impl Running<'_> {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until `/readyz` answers with this status and a body that contains `body`.
    #[track_caller]
    fn wait_ready(&self, status: u16, body: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut last = None;
        while Instant::now() < deadline {
            last = self.host.get("/readyz").ok();
            if let Some(response) = &last
                && response.status == status
                && response.body.contains(body)
            {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "/readyz answers {last:?}, not {status} {body:?}\n{}",
            self.log()
        );
    }

    fn terminate(mut self) -> std::process::ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let host = AgentHost::new();
    let file = host.folder.path().join("agent.yaml");
    fs::write(&file, "mtu: one\nudpPort: two\nmasquerade: three\n").unwrap();
    let mut command = host.agent();
    command
        .arg("--config")
        .arg(&file)
        .env("IPIP_UDP_PORT", "four")
        .env("IPIP_MASQUERADE", "five")
        .args(["--masquerade", "six", "--check"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    for origin in [
        "mtu: \"one\" (line 1 of the configuration file)",
        "udpPort: \"four\" (environment variable IPIP_UDP_PORT)",
        "masquerade: \"six\" (flag --masquerade)",
    ] {
        assert!(stderr.contains(origin), "{origin} is not in {stderr}");
    }
    assert!(!stderr.contains('\u{1b}'), "colours in a pipe: {stderr}");
}

#[test]
fn the_printed_default_configuration_is_accepted_and_changes_nothing() {
    let host = AgentHost::new();
    let printed = host.run(&["--print-default-config"]);
    assert!(printed.status.success(), "{printed:?}");
    let file = host.folder.path().join("agent.yaml");
    fs::write(&file, &printed.stdout).unwrap();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let with_file = host.run(&["--check", "--config", file.to_str().unwrap()]);
    assert!(with_file.status.success(), "{with_file:?}");
    assert_eq!(with_file.stdout, host.run(&["--check"]).stdout);
    // It is also printed if the configuration is invalid.
    let reprinted = host.run(&["--print-default-config", "--mtu", "one"]);
    assert_eq!(reprinted.stdout, printed.stdout);
}

#[test]
fn check_validates_the_inventory_and_the_hosts_mtu_and_changes_nothing() {
    let host = AgentHost::new();
    let output = host.run(&["--check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("inventory: cannot read"));
    fs::write(host.inventory(), INVENTORY).unwrap();
    let output = host.run(&["--check"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("with 4 nodes are valid"));
    let output = host.run(&["--check", "--mtu", "1473"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    // One node of the example uses UDP.
    assert!(stderr.contains("at most 1472"), "{stderr}");
    assert!(!host.pin_root().exists());
}

#[test]
fn a_pool_that_holds_an_address_of_the_host_or_the_services_fails_the_check_and_the_start() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let refused = |pool: &str, more: &[&str]| {
        let mut command = host.agent();
        command
            .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
            .args(["--cluster-pod-cidrs", pool])
            .args(more);
        let output = host.netns.run(|| command.output()).unwrap().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    for (pool, expected) in [
        (
            "10.42.0.0/16,10.0.0.0/24",
            "10.0.0.0/24 holds 10.0.0.1, a gateway of this node",
        ),
        ("10.0.0.8/29", "nodeCIDRMaskSize: \"24\""),
        (
            "10.96.0.0/16",
            "10.96.0.0/16 holds 10.96.0.1, the address of the Service kubernetes",
        ),
    ] {
        for more in [&["--check"][..], &[]] {
            let (code, stderr) = refused(pool, more);
            assert_eq!(code, Some(1), "{pool} {more:?}: {stderr}");
            assert!(stderr.contains(expected), "{pool} {more:?}: {stderr}");
            assert!(stderr.contains("remedy: "), "{stderr}");
        }
    }
    assert_eq!(refused("10.42.0.0/16", &["--check"]).0, Some(0));
}

#[test]
fn the_agent_is_alive_but_not_ready_before_it_has_a_valid_inventory() {
    let host = AgentHost::new();
    let agent = host.start(&[]);
    agent.wait_ready(503, "inventory: cannot read");
    assert_eq!(host.get("/livez").unwrap().status, 200);
    fs::write(host.inventory(), INVENTORY).unwrap();
    agent.wait_ready(200, "ok");
    assert!(agent.terminate().success());
    assert!(host.pin_root().exists(), "SIGTERM leaves the datapath");
}

#[test]
fn the_json_log_is_one_object_a_line_with_fields() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&["--log-format", "json"]);
    agent.wait_ready(200, "ok");
    let log = agent.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let home = lines.iter().find(|line| line["peer"] == "home").unwrap();
    assert_eq!(home["level"], "WARN");
    assert!(home["why"].as_str().unwrap().contains("publicEndpoint"));
}

#[test]
fn a_second_agent_with_the_same_state_and_an_uninstall_under_a_running_one_are_refused() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    for args in [&["--health", "127.0.0.1:9879"][..], &["uninstall"]] {
        let output = host.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("another ipip-agent runs"));
    }
    assert!(agent.terminate().success());
    assert!(host.run(&["uninstall"]).status.success());
    assert!(!host.pin_root().exists());
}

#[test]
fn changes_by_other_programs_are_repaired() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    host.sh("ip link delete ipip0");
    host.sh("for i in $(seq 100); do ip route show 10.42.3.0/24 | grep -q ipip0 && exit; sleep 0.1; done; exit 1");
    host.sh("ip route delete 10.42.2.0/24");
    host.sh("for i in $(seq 100); do ip route show 10.42.2.0/24 | grep -q ipip0 && exit; sleep 0.1; done; exit 1");
    // The new interface has a new index, and needs its own program.
    host.sh("ip link delete eth0
             ip link add eth0 type veth peer name far
             ip address add 10.0.0.11/24 dev eth0
             ip link set eth0 up
             ip link set far up");
    let pins = ipip_datapath::Pins::new(host.pin_root());
    let attached = || {
        let list =
            || ipip_datapath::Programs::open(&pins, ipip_datapath::AttachMode::Auto)?.attached();
        host.netns.run(list).unwrap().unwrap()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while attached().iter().any(|it| it.defunct) || attached().len() != 3 {
        assert!(
            Instant::now() < deadline,
            "{:?}\n{}",
            attached(),
            agent.log()
        );
        thread::sleep(Duration::from_millis(50));
    }
    agent.wait_ready(200, "ok");
}

#[test]
fn edited_and_stray_routes_of_the_agents_protocol_are_corrected() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    let routes = || host.netns.sh("ip route show proto 105");
    let before = routes();
    assert!(
        before.contains("10.42.2.0/24 via 192.0.0.8 dev ipip0"),
        "{before}"
    );
    host.sh(
        "ip route replace 10.42.2.0/24 dev ipip0 proto 105 scope global mtu 1000
             ip route add blackhole 10.77.0.0/16 proto 105
             ip route add 10.78.0.0/16 via 10.0.0.5 proto 105
             ip route add 10.79.0.0/16 proto 105 nexthop via 10.0.0.5 nexthop via 10.0.0.6",
    );
    host.wait(|| routes() == before);
}

#[test]
fn a_restart_does_not_change_the_nftables_table_and_uninstall_removes_it() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let (first, second) = (host.folder.path().join("1"), host.folder.path().join("2"));
    for file in [&first, &second] {
        let agent = host.start(&[]);
        agent.wait_ready(200, "ok");
        // Handles are never reused, so equal handles prove that no rule was replaced.
        host.sh(&format!("nft -a list ruleset >{}", file.display()));
        assert!(agent.terminate().success());
    }
    let rules = fs::read_to_string(&first).unwrap();
    assert!(rules.contains("masquerade"), "{rules}");
    assert_eq!(rules, fs::read_to_string(&second).unwrap());
    assert!(host.run(&["uninstall"]).status.success());
    host.sh("test -z \"$(nft list ruleset)\"");
}

#[test]
fn an_uplink_that_the_routes_name_later_gets_its_program() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    host.sh("ip link add eth1 type veth peer name far1
             ip address add 10.0.9.11/24 dev eth1
             ip link set eth1 up
             ip link set far1 up");
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    assert!(!host.has_program("eth1"));
    host.sh("ip route replace default via 10.0.9.1 dev eth1");
    host.wait(|| host.has_program("eth1"));
    assert!(host.has_program("eth0"), "peers of the realm are behind it");
    agent.wait_ready(200, "ok");
}

#[test]
fn a_mistyped_uplink_is_named_and_no_program_is_detached() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    drop(agent);
    let agent = host.start(&["--uplinks", "ethX"]);
    agent.wait_ready(503, "no interface called \"ethX\"");
    // A host event triggers a reconciliation, which must not change this.
    host.sh("ip neighbour replace 10.0.0.12 lladdr 02:00:00:00:00:12 dev eth0");
    thread::sleep(Duration::from_millis(500));
    agent.wait_ready(503, "no interface called \"ethX\"");
    assert!(host.has_program("eth0"));
    let output = host.run(&["--check", "--uplinks", "ethX"]);
    assert!(text(&output.stderr).contains("ethX"), "{output:?}");
}

#[test]
fn prepare_does_every_step_that_it_can_and_reports_each_other_one() {
    let host = AgentHost::new();
    // The first step and the last one fail.
    host.sh("ip link add ipip0 type bridge");
    let path = |name: &str| host.folder.path().join(name).display().to_string();
    let prepared = host.run(&[
        "prepare",
        "--pin-root",
        &path("missing/bpf/ipip"),
        // Nothing of the machine itself is read or written.
        "--host-root",
        &path("root"),
        "--kubelet-kubeconfigs",
        &path("kubelet.conf"),
    ]);
    let said = text(&prepared.stderr);
    assert_eq!(prepared.status.code(), Some(1), "{said}");
    for part in ["missing/bpf", "ipip0 is not ours: its kind is bridge"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let forwarding = host.netns.sh("cat /proc/sys/net/ipv4/ip_forward");
    assert_eq!(forwarding.trim(), "1");
    assert!(host.folder.path().join("run/probe.key").is_file());
}

#[test]
fn without_a_key_the_agent_works_and_says_once_that_it_does_not_probe() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&["--run-dir", "/proc/ipip"]);
    agent.wait_ready(200, "ok");
    let log = agent.log();
    assert_eq!(log.matches("are not probed").count(), 1, "{log}");
    assert!(log.contains("cannot write /proc/ipip/probe.key"), "{log}");
}

#[test]
fn uninstall_keeps_files_of_others_in_the_same_folders() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    let state = host.folder.path().join("state");
    fs::write(state.join("other"), "").unwrap();
    fs::create_dir(host.pin_root().join("other")).unwrap();
    agent.terminate();
    assert!(host.run(&["uninstall"]).status.success());
    let names = |folder: &Path| -> Vec<_> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names(&state), ["other"]);
    assert_eq!(names(&host.pin_root()), ["other"]);
    assert!(!host.folder.path().join("run").exists());
}

#[test]
fn an_interface_of_another_program_called_ipip0_is_not_changed() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    host.sh("ip link add ipip0 type bridge");
    let agent = host.start(&[]);
    agent.wait_ready(503, "interface ipip0 is not ours: its kind is bridge");
    host.sh("ip link delete ipip0");
    agent.wait_ready(200, "ok");
}

#[test]
fn a_route_of_another_program_in_place_of_ours_is_reported_and_kept() {
    let host = AgentHost::new();
    fs::write(host.inventory(), INVENTORY).unwrap();
    host.sh("ip route add 10.42.2.0/24 via 10.0.0.12");
    let agent = host.start(&[]);
    agent.wait_ready(200, "ok");
    host.sh("ip route show 10.42.2.0/24 | grep 'via 10.0.0.12'");
    let log = agent.log();
    assert!(
        log.contains("a route to 10.42.2.0/24, the pods of a peer, is not ours"),
        "{log}"
    );
}
