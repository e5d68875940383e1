//! Debian's containerd and the current version, called through CRI as a kubelet does.

use crate::{cri::Cri, runtime_node::RuntimeNode};
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::worker;
use ipip_testkit::wait;
use std::{
    env,
    io::{self, Write},
    time::{Duration, Instant},
};

/// Variable with the number of sandboxes.
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

/// Adds and removes sandboxes under the containerd that runs. `version` is a part of its version, and `path` sets the
/// variable PATH so that it finds the `ctr` of that version.
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
