//! Debian 12's podman, which uses CNI.

use crate::runtime_node::RuntimeNode;
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::worker;

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
        "the network backend is {backend}, not CNI"
    );
    let image = node.tools.image("pause")?;
    podman(&[
        "load",
        "--input",
        image.to_str().context("the path is not UTF-8")?,
    ])?;
    let cgroup = format!("--cgroup-parent={}", machine.cgroup());
    let run = [
        "run",
        "--detach",
        "--name",
        "c",
        "--network",
        "ipip",
        // Lower limits than the default, which a machine may not be allowed to set.
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
