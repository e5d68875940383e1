//! The plugin under real runtimes: containerd through CRI, cnitool, podman.

use crate::{cri::Cri, runtime_node::RuntimeNode};
use anyhow::{Context, Result, ensure};
use ipip_tests::{kubernetes::worker, shell, wait};
use serde_json::{Value, json};
use std::{
    env,
    io::{self, Write},
    process::Output,
    time::{Duration, Instant},
};

/// How many sandboxes the loops make.
const SANDBOXES: &str = "IPIP_SANDBOXES";

#[test]
fn under_containerd_1_6_sandboxes_come_and_go_and_leave_nothing() -> Result<()> {
    let node = RuntimeNode::start()?;
    let programs = node.tools.programs().join("../containerd-debian");
    let programs = std::path::absolute(programs)?;
    let path = format!("PATH={}:{}", programs.display(), node.tools.search_path());
    node.machine
        .write("/etc/containerd/config.toml", &config(2))?;
    let mut command = node.machine.command("env");
    command.args([
        &path,
        "containerd",
        "--config",
        "/etc/containerd/config.toml",
    ]);
    node.machine.daemon("containerd", &mut command)?;
    sandboxes_come_and_go(&node, "1.6.", &path)
}

#[test]
fn under_containerd_2_4_sandboxes_come_and_go_and_leave_nothing() -> Result<()> {
    let node = RuntimeNode::start()?;
    node.machine
        .write("/etc/containerd/config.toml", &config(3))?;
    let mut command = node.machine.command("containerd");
    command.args(["--config", "/etc/containerd/config.toml"]);
    node.machine.daemon("containerd", &mut command)?;
    let path = format!("PATH={}", node.tools.search_path());
    sandboxes_come_and_go(&node, "2.4.", &path)
}

fn config(version: u8) -> String {
    let common = "root = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
                  [grpc]\n  address = \"/run/containerd/containerd.sock\"\n";
    let cni = "bin_dir = \"/opt/cni/bin\"\n  conf_dir = \"/etc/cni/net.d\"\n";
    match version {
        2 => format!(
            "version = 2\n{common}\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{}\"\n  \
             disable_apparmor = true\n  restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  {cni}",
            worker::PAUSE
        ),
        _ => format!(
            "version = 3\n\
             disabled_plugins = [\"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.opt\"]\n{common}\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\n  sandbox = \"{}\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\n  \
             disable_apparmor = true\n  restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\n  \
             bin_dirs = [\"/opt/cni/bin\"]\n  conf_dir = \"/etc/cni/net.d\"\n",
            worker::PAUSE
        ),
    }
}

/// `path` leads to the runtime's own `ctr`: each speaks to its own kind alone.
fn sandboxes_come_and_go(node: &RuntimeNode, version: &str, path: &str) -> Result<()> {
    let socket = node.path("/run/containerd/containerd.sock");
    wait::within(Duration::from_secs(60), "containerd answers", || {
        node.machine.check_daemons()?;
        Ok(node
            .machine
            .output("env", &[path, "ctr", "version"])?
            .status
            .success())
    })?;
    let image = node.tools.image("pause")?;
    let image = image.to_str().context("a path that is no UTF-8")?;
    let import = [
        path,
        "ctr",
        "--namespace",
        "k8s.io",
        "images",
        "import",
        image,
    ];
    node.machine.run("env", &import)?;
    let mut cri = Cri::connect(socket)?;
    let spoken = cri.version()?;
    ensure!(spoken.contains(version), "this is {spoken}");
    wait::until("the runtime takes the list", || Ok(cri.network_ready()?.0))?;
    let cgroup = node.machine.cgroup();

    // One that is looked at: an address, and a port of the node that leads to it.
    let id = cri.run("first", &cgroup, &[(8080, 80)])?;
    let address = cri.address(&id)?;
    ensure!(address.octets()[..2] == [10, 42], "{address}");
    ensure!(
        node.traces()?
            .iter()
            .any(|it| it == &format!("entry {address}")),
        "{:?}",
        node.traces()?
    );
    let rules = node
        .machine
        .run("sh", &["-c", "iptables-save; nft list ruleset"])?;
    ensure!(
        rules.contains("8080") && rules.contains(&address.to_string()),
        "portmap has done nothing: {rules}"
    );
    cri.remove(&id)?;
    node.expect_no_trace()?;
    let rules = node
        .machine
        .run("sh", &["-c", "iptables-save; nft list ruleset"])?;
    ensure!(
        !rules.contains(&address.to_string()),
        "left behind: {rules}"
    );

    let count: u32 = match env::var(SANDBOXES) {
        Ok(text) => text.parse()?,
        Err(_) => 20,
    };
    let began = Instant::now();
    for number in 0..count {
        let id = cri
            .run(&format!("s{number}"), &cgroup, &[])
            .with_context(|| {
                format!(
                    "sandbox {number}\n{}",
                    node.machine.log_tail("containerd", 10)
                )
            })?;
        ensure!(node.traces()?.len() == 6, "{:?}", node.traces()?);
        cri.remove(&id)?;
    }
    cri.expect_none()?;
    node.expect_no_trace()?;
    writeln!(
        io::stderr(),
        "{spoken}: {count} sandboxes in {:.1} s, 0 leaked",
        began.elapsed().as_secs_f64()
    )?;
    Ok(())
}

#[test]
fn cnitool_drives_add_check_del_gc_and_status() -> Result<()> {
    let node = RuntimeNode::start()?;
    let machine = &node.machine;
    let cnitool = |verb: &str, pod: &str, variables: &[&str]| -> Result<Output> {
        let mut command = machine.command("env");
        command.args(["CNI_PATH=/opt/cni/bin", "NETCONFPATH=/etc/cni/net.d"]);
        command.args(variables).args(["cnitool", verb, "ipip", pod]);
        Ok(command.output()?)
    };
    let succeed = |verb: &str, pod: &str, variables: &[&str]| -> Result<String> {
        shell::printed(
            &format!("cnitool {verb}"),
            Ok(cnitool(verb, pod, variables)?),
        )
    };
    machine.run("ip", &["netns", "add", "one"])?;
    let pod = "/run/netns/one";
    let ports = json!({"portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}],
                       "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000,
                                     "egressRate": 8_000_000, "egressBurst": 8_000_000}});
    let chained = format!("CAP_ARGS={ports}");
    let printed = succeed("add", pod, &[&chained])?;
    let result: Value = serde_json::from_str(&printed)?;
    // The newest of the versions that the list offers.
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    succeed("check", pod, &[&chained])?;
    let second = cnitool("add", pod, &[])?;
    ensure!(!second.status.success(), "a second ADD succeeded");

    // A port of the node leads to the pod.
    let serve = [
        "netns", "exec", "one", "busybox", "nc", "-l", "-p", "80", "-e", "echo", "hello",
    ];
    let mut server = machine.command("ip").args(serve).spawn()?;
    let answered = wait::until("the mapped port answers", || {
        let heard = machine.output("busybox", &["nc", "-w", "1", "10.0.0.11", "8081"])?;
        Ok(String::from_utf8_lossy(&heard.stdout).contains("hello"))
    });
    let _ = server.kill();
    server.wait()?;
    answered?;

    succeed("status", "", &[])?;
    succeed("del", pod, &[&chained])?;
    succeed("del", pod, &[&chained])?;
    node.expect_no_trace()?;

    // cnitool sends no list: libcni DELs by itself what it remembers, and we refuse to guess.
    let refused = |what: &str| -> Result<()> {
        let output = cnitool("gc", "", &[])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && said.contains("valid-attachments is missing"),
            "{what}: {said}"
        );
        Ok(())
    };
    succeed("add", pod, &[])?;
    refused("what libcni remembers")?;
    node.expect_no_trace()?;
    succeed("add", pod, &[])?;
    let before = node.traces()?;
    machine.run("mv", &["/var/lib/cni/results", "/var/lib/cni/forgotten"])?;
    refused("what libcni has forgotten")?;
    ensure!(node.traces()? == before, "{:?}", node.traces()?);
    machine.run("rm", &["-rf", "/var/lib/cni/results"])?;
    machine.run("mv", &["/var/lib/cni/forgotten", "/var/lib/cni/results"])?;
    succeed("del", pod, &[])?;
    node.expect_no_trace()
}

#[test]
fn podman_runs_a_container_on_our_network_and_leaves_nothing() -> Result<()> {
    let node = RuntimeNode::start()?;
    let machine = &node.machine;
    let podman = |arguments: &[&str]| {
        let settings = [
            "--storage-driver",
            "vfs",
            "--root",
            "/var/lib/containerd/podman",
        ];
        let more = ["--cgroup-manager", "cgroupfs", "--runtime", "runc"];
        let own = [
            &settings[..],
            &more,
            &["--network-config-dir", "/etc/cni/net.d"],
        ]
        .concat();
        machine.run("podman", &[&own, arguments].concat())
    };
    let backend = podman(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
    ensure!(
        backend.trim() == "cni",
        "this podman speaks {backend}, not CNI"
    );
    let image = node.tools.image("pause")?;
    podman(&[
        "load",
        "--input",
        image.to_str().context("a path that is no UTF-8")?,
    ])?;
    let cgroup = format!("--cgroup-parent={}", machine.cgroup());
    let run = [
        "run",
        "--detach",
        "--name",
        "c",
        "--network",
        "ipip",
        // A machine that may raise no limit can lower them.
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        &cgroup,
        worker::PAUSE,
    ];
    podman(&run)?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = podman(&["inspect", "--format", format, "c"])?;
    let entry = format!("entry {}", address.trim());
    ensure!(
        node.traces()?.contains(&entry),
        "{entry}: {:?}",
        node.traces()?
    );
    podman(&["rm", "--force", "--time", "0", "c"])?;
    node.expect_no_trace()
}
