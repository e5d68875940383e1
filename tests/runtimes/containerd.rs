//! Debian's containerd and the current version, called through CRI as a kubelet does.

use crate::{
    cri::Cri,
    runtime_node::{CniFolders, RuntimeNode},
};
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::worker;
use ipip_testkit::{shell, wait};
use std::{
    env,
    io::{self, Write},
    time::{Duration, Instant},
};

/// Variable with the number of sandboxes.
const SANDBOXES: &str = "IPIP_SANDBOXES";

#[test]
fn under_containerd_1_6_sandboxes_come_and_go_and_leave_nothing() -> Result<()> {
    let node = RuntimeNode::start_with(ELSEWHERE)?;
    let path = start_containerd_1_6(&node)?;
    sandboxes_come_and_go(&node, "1.6.", &path)
}

/// The node's state after a hard reset: no process, no bpffs, no `/run`; the files in `/etc` are still there. Unlike
/// newer ones, this runtime does not ask the plugin for its status.
#[test]
fn after_a_boot_containerd_is_not_ready_before_the_datapath_and_addresses_are_free() -> Result<()> {
    let node = RuntimeNode::start()?;
    let machine = &node.machine;
    let path = start_containerd_1_6(&node)?;
    let (mut cri, _) = connect(&node, "1.6.", &path)?;
    let cgroup = machine.cgroup();
    let before = cri.run("before", &cgroup, &[])?;
    let address = cri.address(&before)?;

    machine.kill_daemon("ipip-agent")?;
    machine.run("mkdir", &["-p", "/run/systemd/system"])?;
    shell::printed("prepare", node.agent()?.arg("prepare").output())?;
    // Another network's file, as flannel leaves it.
    let other = r#"{"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]}"#;
    machine.write(&format!("{}/10-other.conflist", node.cni.conf), other)?;
    let valid = machine.run("cat", &[&node.list()])?;
    let links =
        "for link in $(ip -o link | grep -o 'pod[0-9a-f]*'); do ip link delete \"$link\"; done";
    machine.run("sh", &["-c", links])?;
    machine.run("ip", &["link", "delete", "ipip0"])?;
    machine.run("rm", &["-r", "/run/ipip"])?;
    machine.run("rm", &["-r", "/sys/fs/bpf/ipip"])?;
    let boot = |cri: &mut Cri| -> Result<()> {
        let rule = "/etc/tmpfiles.d/ipip.conf";
        let phase = ["--create", "--remove", "--boot", rule];
        machine.run("systemd-tmpfiles", &phase)?;
        wait::until("the runtime's network is not ready", || {
            Ok(!cri.network_ready()?.0)
        })
    };
    boot(&mut cri)?;

    // Without a datapath, a pod fails with the reason. So it does where no rule of systemd applies.
    machine.write(&node.list(), &valid)?;
    wait::until("the runtime reads the list", || Ok(cri.network_ready()?.0))?;
    let early = cri.run("early", &cgroup, &[]).err();
    let error = early.context("a pod started")?.to_string();
    ensure!(error.contains("no datapath is pinned"), "{error}");

    boot(&mut cri)?;
    node.start_agent()?;
    wait::until("the runtime's network is ready", || {
        Ok(cri.network_ready()?.0)
    })?;
    let id = cri.run("after", &cgroup, &[])?;
    ensure!(cri.address(&id)? == address, "{address} is still taken");
    // The kubelet removes the sandboxes of the time before the boot. The address belongs to another pod now.
    cri.remove(&before)?;
    ensure!(
        node.traces()?.contains(&format!("lease {address}")),
        "{:?}",
        node.traces()?
    );
    cri.remove(&id)
}

#[test]
fn under_containerd_2_4_sandboxes_come_and_go_and_leave_nothing() -> Result<()> {
    let node = RuntimeNode::start()?;
    node.machine
        .write("/etc/containerd/config.toml", &config(3, node.cni))?;
    let mut command = node.machine.command("containerd");
    command.args(["--config", "/etc/containerd/config.toml"]);
    node.machine.daemon("containerd", &mut command)?;
    let path = format!("PATH={}", node.tools.search_path());
    sandboxes_come_and_go(&node, "2.4.", &path)
}

/// Starts Debian's containerd, and returns the variable PATH with its programs.
fn start_containerd_1_6(node: &RuntimeNode) -> Result<String> {
    let programs = node.tools.programs().join("../containerd-debian");
    let programs = std::path::absolute(programs)?;
    let path = format!("PATH={}:{}", programs.display(), node.tools.search_path());
    node.machine
        .write("/etc/containerd/config.toml", &config(2, node.cni))?;
    let mut command = node.machine.command("env");
    command.args([
        &path,
        "containerd",
        "--config",
        "/etc/containerd/config.toml",
    ]);
    node.machine.daemon("containerd", &mut command)?;
    Ok(path)
}

/// Folders as distributions have them whose runtime does not look in the usual ones.
const ELSEWHERE: CniFolders = CniFolders {
    bin: "/usr/local/libexec/cni",
    conf: "/etc/kubernetes/cni",
};

fn config(version: u8, cni: CniFolders) -> String {
    let CniFolders { bin, conf } = cni;
    let common = "root = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
                  [grpc]\n  address = \"/run/containerd/containerd.sock\"\n";
    let cni = format!("bin_dir = \"{bin}\"\n  conf_dir = \"{conf}\"\n");
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
             bin_dirs = [\"{bin}\"]\n  conf_dir = \"{conf}\"\n",
            worker::PAUSE
        ),
    }
}

/// Waits for the containerd that runs, and for its network. `version` is a part of its version, and `path` sets the
/// variable PATH so that it finds the `ctr` of that version.
fn connect(node: &RuntimeNode, version: &str, path: &str) -> Result<(Cri, String)> {
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
    let image = image.to_str().context("the path is not UTF-8")?;
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
    ensure!(spoken.contains(version), "the runtime is {spoken}");
    wait::until("the runtime reads the list", || Ok(cri.network_ready()?.0))?;
    Ok((cri, spoken))
}

/// Adds and removes sandboxes under the containerd that runs. The arguments are those of [`connect`].
fn sandboxes_come_and_go(node: &RuntimeNode, version: &str, path: &str) -> Result<()> {
    let (mut cri, spoken) = connect(node, version, path)?;
    let cgroup = node.machine.cgroup();

    // One sandbox in detail: its address, and a port of the node that is mapped to it.
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
        "portmap has added no rule: {rules}"
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
