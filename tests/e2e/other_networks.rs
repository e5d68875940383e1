//! What other pod networks leave on a node: interfaces and routes that lead to the pods of peers.

use anyhow::{Context, Result, ensure};
use ipip_lab::{Lab, LabNode};
use ipip_testkit::{harness::Test, ping::Ping, shell, tests, wait};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

pub const TESTS: &[Test<Lab>] = tests![
    leftovers_of_a_pod_network_cut_no_peer_off_while_the_agent_runs,
    leftovers_of_a_pod_network_cut_no_peer_off_at_the_agents_start,
    routes_to_pods_through_an_uplink_do_not_replace_ours,
    prepare_removes_what_flannel_has_left_and_says_so,
    prepare_removes_nothing_of_a_network_whose_pods_still_run,
    prepare_refuses_a_network_that_it_does_not_know,
];

/// What a network leaves on `a1`, as commands of `ip`. The peers' pod CIDRs are 10.42.2.0/24 to 10.42.4.0/24.
struct Left {
    /// The network's name in reports.
    network: &'static str,
    commands: &'static [&'static str],
    /// Its interfaces; deleting them deletes the rest.
    links: &'static [&'static str],
}

const LEFT: &[Left] = &[
    Left {
        network: "flannel",
        commands: &[
            "link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning",
            "address add 10.42.1.0/32 dev flannel.1",
            "link set flannel.1 up",
            "route replace 10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink",
            "route replace 10.42.3.0/24 via 10.42.3.0 dev flannel.1 onlink",
            "route replace 10.42.4.0/24 via 10.42.4.0 dev flannel.1 onlink",
        ],
        links: &["flannel.1"],
    },
    // Its address is from a block of Calico's own, which may be part of any node's pod CIDR.
    Left {
        network: "calico",
        commands: &[
            "link add vxlan.calico type vxlan id 4096 dev eth0 dstport 4789 nolearning",
            "address add 10.42.3.192/32 dev vxlan.calico",
            "link set vxlan.calico up",
            "route replace 10.42.3.0/24 via 10.42.3.193 dev vxlan.calico onlink",
        ],
        links: &["vxlan.calico"],
    },
    Left {
        network: "cilium",
        commands: &[
            "link add cilium_host type veth peer name cilium_net",
            "address add 10.42.4.215/32 dev cilium_host",
            "link set cilium_net up",
            "link set cilium_host up",
            "route replace 10.42.3.0/24 via 10.42.4.215 dev cilium_host src 10.42.4.215",
        ],
        links: &["cilium_host"],
    },
];

impl Left {
    /// Removes the interfaces when dropped.
    fn on<'a>(&'a self, node: &'a LabNode) -> Result<Leftovers<'a>> {
        let leftovers = Leftovers { left: self, node };
        for command in self.commands {
            node.ip(command)?;
        }
        Ok(leftovers)
    }
}

struct Leftovers<'a> {
    left: &'a Left,
    node: &'a LabNode,
}

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        for link in self.left.links {
            let is_there = self.node.ip(&format!("link show {link}")).is_ok();
            if is_there && let Err(error) = self.node.ip(&format!("link delete {link}")) {
                eprintln!("removing what {} left: {error:#}", self.left.network);
            }
        }
    }
}

fn leftovers_of_a_pod_network_cut_no_peer_off_while_the_agent_runs(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    for left in LEFT {
        let leftovers = left.on(node)?;
        reaches_every_peer(lab)?;
        reports(node, left, true)?;
        drop(leftovers);
        reaches_every_peer(lab)?;
        reports(node, left, false)?;
    }
    Ok(())
}

fn leftovers_of_a_pod_network_cut_no_peer_off_at_the_agents_start(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    for left in LEFT {
        node.stop_agent()?;
        let leftovers = left.on(node);
        node.restart_agent()?;
        let leftovers = leftovers?;
        reaches_every_peer(lab)?;
        reports(node, left, true)?;
        drop(leftovers);
        reaches_every_peer(lab)?;
    }
    Ok(())
}

/// Flannel's backend `host-gw`, kindnet and route controllers of clouds write such routes. Nothing marks them as
/// theirs.
fn routes_to_pods_through_an_uplink_do_not_replace_ours(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let route = "10.42.3.0/24 via 10.0.0.12 dev eth0";
    node.ip(&format!("route replace {route}"))?;
    let works =
        reaches_every_peer(lab).and_then(|()| {
            wait::until("the route is reported", || {
                Ok(report(node)?
                    .contains("`ip route del 10.42.3.0/24 via 10.0.0.12 dev eth0 proto 3`"))
            })
        });
    let kept = node.ip("route show 10.42.3.0/24 via 10.0.0.12")?;
    node.ip(&format!("route delete {route}"))?;
    works?;
    ensure!(kept.contains("eth0"), "the agent deleted a foreign route");
    Ok(())
}

/// Waits until the pod and the host `a1` reach the pods of every peer, and these the pod.
fn reaches_every_peer(lab: &Lab) -> Result<()> {
    let (node, pod) = (lab.node("a1")?, lab.pod("a1")?);
    for peer in ["a2", "b1", "c1"] {
        let other = lab.pod(peer)?;
        let ours = format!("a1's route to the pods of {peer} leads into the tunnel");
        wait::until(&ours, || {
            let route = node.ip(&format!("route get {}", other.address()))?;
            Ok(route.contains("dev ipip0"))
        })?;
        Ping::to(other.address()).reply_ttl(pod)?;
        Ping::to(pod.address()).reply_ttl(other)?;
        Ping::to(other.address()).reply_ttl(node)?;
    }
    Ok(())
}

/// Waits until the agent's report names these leftovers and the remedy, or does not.
fn reports(node: &LabNode, left: &Left, expected: bool) -> Result<()> {
    let remedy = format!("`ipip-agent prepare --clean-up-after {}`", left.network);
    wait::until(
        &format!("{} is in the report: {expected}", left.network),
        || {
            let report = report(node)?;
            Ok((report.contains(&remedy) && report.contains(left.links[0])) == expected)
        },
    )
}

fn report(node: &LabNode) -> Result<String> {
    Ok(fs::read_to_string(node.folder().join("state/report.json"))?)
}

/// Runs `prepare --clean-up-after NETWORK` beside the agent of `node`, with `root` as the host's root folder, which
/// gets the programs of this machine.
fn clean_up_after(node: &LabNode, network: &str, root: &Path) -> Result<Output> {
    const SCRIPT: &str = r#"
set -e
root=$1
shift
for folder in usr proc sys; do
  mkdir -p "$root/$folder"
  mount --rbind "/$folder" "$root/$folder"
done
for link in bin sbin lib lib64; do
  [ -e "$root/$link" ] || ln -s "usr/$link" "$root/$link"
done
mkdir -p "$root/run"
exec "$@"
"#;
    let agent = node.agent_command()?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(root)
        .arg(agent.get_program())
        .args(agent.get_args())
        .args(["prepare", "--clean-up-after", network, "--host-root"])
        .arg(root);
    node.output(&mut command)
}

/// Writes a file below `root`, with its folders.
fn write(root: &Path, path: &str) -> Result<PathBuf> {
    let path = root.join(path);
    fs::create_dir_all(path.parent().context("no folder")?)?;
    fs::write(&path, "{}")?;
    Ok(path)
}

const FLANNELS_RULES: &str = "*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.42.0.0/16 -j RETURN
COMMIT
";

fn prepare_removes_what_flannel_has_left_and_says_so(lab: &Lab) -> Result<()> {
    let (node, folder) = (lab.node("a1")?, tempfile::tempdir()?);
    let root = folder.path();
    let configuration = write(root, "etc/cni/net.d/10-flannel.conflist")?;
    let state = write(root, "run/flannel/subnet.env")?;
    let leftovers = LEFT[0].on(node)?;
    let mut restore = Command::new("iptables-nft-restore");
    node.enter(|| shell::run_with_input(restore.arg("--noflush"), FLANNELS_RULES))??;

    let output = clean_up_after(node, "flannel", root)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    for part in [
        "interface flannel.1",
        "route 10.42.3.0/24 via 10.42.3.0 dev flannel.1",
        "chain nat: FLANNEL-POSTRTG",
        "/etc/cni/net.d/10-flannel.conflist",
        "/run/flannel",
    ] {
        ensure!(said.contains(part), "{part} is not in\n{said}");
    }
    ensure!(node.ip("link show flannel.1").is_err());
    ensure!(!configuration.exists() && !state.exists());
    let rules = node.output(&mut Command::new("iptables-nft-save"))?;
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    ensure!(
        !rules.contains("FLANNEL") && !rules.contains("flanneld"),
        "{rules}"
    );
    reaches_every_peer(lab)?;
    reports(node, leftovers.left, false)?;

    let again = clean_up_after(node, "flannel", root)?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(said.contains("nothing of this network is left"), "{said}");
    Ok(())
}

fn prepare_removes_nothing_of_a_network_whose_pods_still_run(lab: &Lab) -> Result<()> {
    let (node, folder) = (lab.node("a1")?, tempfile::tempdir()?);
    let configuration = write(folder.path(), "etc/cni/net.d/10-flannel.conflist")?;
    let _leftovers = LEFT[0].on(node)?;
    // A pod of flannel is a port of the bridge to which it delegates.
    for command in [
        "link add cni0 type bridge",
        "link add veth0123 type veth peer name eth0-pod",
        "link set veth0123 master cni0",
    ] {
        node.ip(command)?;
    }
    let output = clean_up_after(node, "flannel", folder.path());
    let left = node.ip("link show flannel.1");
    node.ip("link delete veth0123")?;
    node.ip("link delete cni0")?;
    let said = String::from_utf8_lossy(&output?.stderr).into_owned();
    ensure!(
        said.contains("1 pods of this network run") && said.contains("veth0123"),
        "{said}"
    );
    ensure!(left.is_ok() && configuration.exists());
    Ok(())
}

fn prepare_refuses_a_network_that_it_does_not_know(lab: &Lab) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = clean_up_after(lab.node("a1")?, "flanel", folder.path())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success());
    for part in [
        "cleanUpAfter",
        "flanel",
        "flannel, calico, canal, cilium, kindnet and weave",
    ] {
        ensure!(said.contains(part), "{part} is not in\n{said}");
    }
    Ok(())
}
