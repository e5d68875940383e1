//! `ipipctl status`: an overview of this node.

use crate::{
    agent_report::AgentReport,
    drops,
    kernel_drops::KernelDropRow,
    names::{self, Names},
    output::{self, Format},
    rows::{ConfigRow, DropRow, MapRow, PeerInfoRow, PodRow, RouteRow},
};
use anyhow::Result;
use ipip_abi::{ABI_VERSION, Config, PeerInfo, PeerState};
use ipip_datapath::{AttachMode, Attachment, Maps, Pins, Programs};
use serde::Serialize;
use std::fmt::Write;

/// The tunnel interface, which the agent creates.
const TUNNEL: &str = "ipip0";

/// The overview.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node: Option<String>,
    abi: u32,
    pin_root: String,
    configured: bool,
    pod_mtu: Option<u32>,
    pods: usize,
    routes: usize,
    dropped_packets: u64,
    dropped_bytes: u64,
    peers_reachable: usize,
    peers_unreachable: Vec<Unreachable>,
    attached: Vec<AttachedView>,
    kernel_drops: Vec<KernelDropRow>,
    /// What the agent reports; `null` if it has reported nothing.
    agent: Option<AgentReport>,
    warnings: Vec<String>,
}

/// A peer that has no path.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unreachable {
    node: Option<String>,
    state: String,
    why: String,
}

/// A program on an interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AttachedView {
    interface: String,
    program: &'static str,
    mode: String,
    /// Whether the interface no longer exists, or the program is no longer attached to it.
    defunct: bool,
}

/// Attached programs, unreachable peers, numbers of pods, routes and dropped packets, and what the agent reports.
pub fn status(
    pins: &Pins,
    maps: &Maps,
    agent: Option<AgentReport>,
    format: Format,
) -> Result<String> {
    let config = ConfigRow::read_one(maps)?;
    let info = PeerInfoRow::read(maps)?;
    let dropped = drops::total(&DropRow::read(maps)?);
    let (peers_reachable, peers_unreachable) = reachability(&info);
    let names = Names::new(&info, names::interfaces());
    let configured = config.ipip0_ifindex != 0;
    let attached = Programs::open(pins, AttachMode::Auto)?.attached()?;
    let status = Status {
        node: names.peer(0),
        abi: ABI_VERSION,
        pin_root: pins.root().display().to_string(),
        configured,
        pod_mtu: configured.then_some(config.pod_mtu),
        pods: PodRow::read(maps)?.len(),
        routes: RouteRow::read(maps)?.len(),
        dropped_packets: dropped.packets,
        dropped_bytes: dropped.bytes,
        peers_reachable,
        peers_unreachable,
        kernel_drops: KernelDropRow::read(&attached)?,
        attached: attached.into_iter().map(AttachedView::from).collect(),
        agent,
        warnings: warnings(&config, &names),
    };
    match format {
        Format::Json => output::json(&status),
        Format::Table => text(&status),
    }
}

/// Interfaces are looked up in the network namespace of this process. In any other namespace than the
/// node's, attached programs seem to be defunct.
fn warnings(config: &Config, names: &Names) -> Vec<String> {
    let index = config.ipip0_ifindex;
    if index == 0 || names.interface(index).as_deref() == Some(TUNNEL) {
        return Vec::new();
    }
    vec![format!(
        "interface {TUNNEL} (index {index}) is not in this network namespace: run ipipctl in the \
         namespace of the node (`nsenter --net=FILE ipipctl status`), or start ipip-agent, which \
         creates {TUNNEL}"
    )]
}

/// The number of reachable peers, and the unreachable ones.
fn reachability(info: &[(u16, PeerInfo)]) -> (usize, Vec<Unreachable>) {
    let names = Names::new(info, Default::default());
    let (mut reachable, mut unreachable) = (0, Vec::new());
    for entry in info.iter().filter(|(peer, _)| *peer != 0) {
        if entry.1.state == PeerState::Reachable as u8 {
            reachable += 1;
            continue;
        }
        let PeerInfoRow {
            node, state, why, ..
        } = PeerInfoRow::new(entry, &names);
        unreachable.push(Unreachable { node, state, why });
    }
    (reachable, unreachable)
}

impl From<Attachment> for AttachedView {
    fn from(attachment: Attachment) -> Self {
        Self {
            interface: attachment.ifname,
            program: attachment.program.name(),
            mode: attachment.mode.to_string(),
            defunct: attachment.defunct,
        }
    }
}

fn text(status: &Status) -> Result<String> {
    let unreachable = status.peers_unreachable.len();
    let lines = [
        ("node", status.node.clone().unwrap_or_else(|| "-".into())),
        ("ABI version", status.abi.to_string()),
        ("pin root", status.pin_root.clone()),
        ("pod MTU", pod_mtu(status)),
        ("pods", status.pods.to_string()),
        ("routes", status.routes.to_string()),
        (
            "agent",
            status
                .agent
                .as_ref()
                .map_or_else(|| "- (no report)".into(), AgentReport::summary),
        ),
        (
            "peers",
            format!("{} reachable, {unreachable} not", status.peers_reachable),
        ),
        (
            "dropped",
            format!(
                "{} packets, {} bytes",
                status.dropped_packets, status.dropped_bytes
            ),
        ),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        writeln!(text, "{name:<12} {value}")?;
    }
    write!(text, "\nattached\n{}", output::table(&status.attached)?)?;
    let kernel_drops = status.kernel_drops.iter().filter(|it| it.is_any());
    let kernel_drops: Vec<_> = kernel_drops.collect();
    if !kernel_drops.is_empty() {
        let table = output::table(&kernel_drops)?;
        write!(text, "\ndropped by the kernel, of all traffic\n{table}")?;
    }
    if unreachable > 0 {
        write!(
            text,
            "\nunreachable\n{}",
            output::table(&status.peers_unreachable)?
        )?;
    }
    let problems = status.agent.iter().flat_map(|agent| &agent.problems);
    for problem in problems {
        write!(text, "\nproblem: {problem}\n")?;
    }
    for warning in &status.warnings {
        write!(text, "\nwarning: {warning}\n")?;
    }
    Ok(text)
}

fn pod_mtu(status: &Status) -> String {
    match status.pod_mtu {
        Some(mtu) => mtu.to_string(),
        None => "- (no agent has configured this datapath yet)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use ipip_abi::Program;

    #[test]
    fn a_status_lists_attached_programs_and_unreachable_peers_with_the_reason() {
        let (peers_reachable, peers_unreachable) = reachability(&testdata::peer_info());
        let attached = Attachment {
            ifname: "eth0".into(),
            program: Program::FromUplink,
            mode: AttachMode::Tcx,
            defunct: false,
        };
        let status = Status {
            node: Some("a1".into()),
            abi: 1,
            pin_root: "/sys/fs/bpf/ipip".into(),
            configured: true,
            pod_mtu: Some(1480),
            pods: 2,
            routes: 4,
            dropped_packets: 3,
            dropped_bytes: 300,
            peers_reachable,
            peers_unreachable,
            attached: vec![attached.into()],
            kernel_drops: vec![
                KernelDropRow::sample("eth0", 676, 0),
                KernelDropRow::sample("ipip0", 0, 0),
            ],
            agent: Some(testdata::agent_report()),
            warnings: vec!["something is wrong: correct it".into()],
        };
        let expected = "\
node         a1
ABI version  1
pin root     /sys/fs/bpf/ipip
pod MTU      1480
pods         2
routes       4
agent        runs, not ready, 1 problem, repaired: 2 Sysctl
peers        1 reachable, 1 not
dropped      3 packets, 300 bytes

attached
INTERFACE  PROGRAM      MODE  DEFUNCT
eth0       from_uplink  tcx   no

dropped by the kernel, of all traffic
INTERFACE  TX DROPPED  RX DROPPED
eth0              676           0

unreachable
NODE  STATE             WHY
c1    NoPublicEndpoint  the peer is in another realm and has no publicEndpoint: set one for it; another node has the same InternalIP and keeps it

problem: NotInSync: cannot write the route; remedy: look at it

warning: something is wrong: correct it
";
        assert_eq!(text(&status).unwrap(), expected);
    }

    #[test]
    fn a_missing_tunnel_interface_is_a_warning_once_the_datapath_is_configured() {
        let names = testdata::names();
        let at = |ipip0_ifindex| Config {
            ipip0_ifindex,
            ..Config::default()
        };
        assert!(warnings(&at(0), &names).is_empty());
        assert!(warnings(&at(3), &names).is_empty());
        for other_or_absent in [2, 77] {
            let warnings = warnings(&at(other_or_absent), &names);
            assert!(warnings[0].contains("network namespace"), "{warnings:?}");
        }
    }
}
