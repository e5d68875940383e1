//! Attackers that are neither peers nor pods: a machine of the node's own network, a machine behind an interface that is
//! no uplink, and a process on a node without privileges. None of them gets a packet into the overlay, apart from
//! Services.

use anyhow::{Context, Result, ensure};
use ipip_abi::{DropReason, wire::DEFAULT_UDP_PORT};
use ipip_lab::{
    Lab, LabNode, Topology, foreign_machine::ForeignMachine, service::Service, topology::STRANGER,
};
use ipip_testkit::{
    echo::{EchoServer, udp_exchange},
    harness::Test,
    host::Host,
    packet_builder, shell, tests, wait,
};
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    process::Command,
};

pub const TESTS: &[Test<Lab>] = tests![
    a_neighbour_on_the_uplink_cannot_use_a_node_as_its_router_into_the_overlay,
    a_machine_behind_another_interface_reaches_services_but_neither_pods_nor_remote_nodes,
    an_interface_that_the_operator_names_leads_to_pods_and_remote_nodes,
    a_machine_behind_another_interface_cannot_use_addresses_of_pods_and_remote_nodes,
    a_process_without_privileges_cannot_speak_for_its_node_and_pods,
    a_pod_cannot_reach_the_tunnels_port_of_a_node_through_a_service,
    a_pod_cannot_send_tunnel_packets_to_a_node_that_its_own_does_not_know,
];

/// Three clouds, whose nodes route for one interface.
pub fn topology() -> Topology {
    let mut topology = Topology::three_clouds();
    topology.agent.routed_interfaces = Some(vec!["routed*".into()]);
    topology
}

const PORT: u16 = 9000;
const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 30), 80);

/// On the network of a1's uplink.
fn neighbour(lab: &Lab) -> Result<ForeignMachine<'_>> {
    let gateway = lab.fabric().gateway("cloud-a")?;
    let machine = connect(lab, (gateway, "neighbour"), [10, 0, 0, 66].into())?;
    gateway.ip("link set neighbour master lan0")?;
    routes_via(lab, &machine, lab.node("a1")?.internal_ip())?;
    Ok(machine)
}

/// Behind a second interface of a1, which is no uplink.
fn behind<'a>(lab: &'a Lab, ifname: &'static str) -> Result<ForeignMachine<'a>> {
    let node: &Host = lab.node("a1")?;
    let machine = connect(lab, (node, ifname), [10, 99, 0, 2].into())?;
    node.ip(&format!("address add 10.99.0.1/24 dev {ifname}"))?;
    // Not strict, as on most distributions: the rules must not rely on it.
    for key in ["all", ifname] {
        node.sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), "0")?;
    }
    routes_via(lab, &machine, [10, 99, 0, 1].into())?;
    Ok(machine)
}

fn connect<'a>(
    lab: &'a Lab,
    wire: (&'a Host, &'static str),
    address: Ipv4Addr,
) -> Result<ForeignMachine<'a>> {
    ForeignMachine::connect(lab.prefix(), lab.trash(), wire, address)
}

/// Everything of the overlay, and Services, by a1.
fn routes_via(lab: &Lab, machine: &ForeignMachine, router: Ipv4Addr) -> Result<()> {
    let host = &machine.host;
    for remote in ["b1", "c1"] {
        let remote = lab.node(remote)?.internal_ip();
        host.ip(&format!("route add {remote} via {router}"))?;
    }
    for range in ["10.42.0.0/16", "10.96.0.0/16"] {
        host.ip(&format!("route add {range} via {router}"))?;
    }
    Ok(())
}

/// Sends a datagram with any source.
fn sends(machine: &ForeignMachine, from: Ipv4Addr, to: SocketAddrV4, data: &[u8]) -> Result<()> {
    let packet = packet_builder::udp(SocketAddrV4::new(from, PORT), to, data)?;
    packet_builder::send(&machine.host, &packet)
}

/// Where nothing of an outsider may arrive: a pod of a1, a pod of a2 and of b1, and the hosts b1 and c1.
fn targets(lab: &Lab) -> Result<Vec<(&Host, SocketAddrV4)>> {
    let pods = ["a1", "a2", "b1"].map(|node| lab.pod(node));
    let mut targets = Vec::new();
    for pod in pods {
        let pod = pod?;
        targets.push((pod as &Host, pod.at(PORT)));
    }
    for name in ["b1", "c1"] {
        let node = lab.node(name)?;
        targets.push((node as &Host, SocketAddrV4::new(node.internal_ip(), PORT)));
    }
    Ok(targets)
}

/// Expects that nothing is in the socket. Everything that was sent before has arrived or was dropped.
fn is_empty(socket: &UdpSocket) -> Result<()> {
    socket.set_nonblocking(true)?;
    let mut bytes = [0; 64];
    match socket.recv_from(&mut bytes) {
        Ok((len, from)) => {
            anyhow::bail!(
                "{:?} of {from} arrived",
                String::from_utf8_lossy(&bytes[..len])
            )
        }
        Err(_) => Ok(()),
    }
}

/// Packets that a rule of the table `ipip-guard` has dropped.
fn dropped(node: &LabNode, rule: &str) -> Result<u64> {
    let list = ["--numeric-protocol", "list", "table", "ip", "ipip-guard"];
    let output = node.output(Command::new("nft").args(list));
    let table = shell::printed("nft list table ip ipip-guard", Ok(output?))?;
    let line = table.lines().find(|it| it.trim().starts_with(rule));
    let line = line.with_context(|| format!("no rule {rule} in {table}"))?;
    let count = line
        .split("packets ")
        .nth(1)
        .and_then(|it| it.split(' ').next());
    Ok(count.context("no counter")?.parse()?)
}

/// Expects that a1 drops the packet of `send` by this rule of the table.
fn is_dropped(node: &LabNode, rule: &str, send: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = dropped(node, rule)?;
    send()?;
    wait::until(&format!("a1 drops the packet: {rule}"), || {
        Ok(dropped(node, rule)? == before + 1)
    })
}

fn a_neighbour_on_the_uplink_cannot_use_a_node_as_its_router_into_the_overlay(
    lab: &Lab,
) -> Result<()> {
    let node = lab.node("a1")?;
    let machine = neighbour(lab)?;
    for (host, to) in targets(lab)? {
        let socket = host.udp(PORT)?;
        let reason = match to == lab.pod("a1")?.at(PORT) {
            true => DropReason::UnencapsulatedToPod,
            false => DropReason::UnencapsulatedToPeer,
        };
        let before = node.drops(reason)?;
        sends(&machine, machine.address, to, b"routed")?;
        wait::until(&format!("a1 drops the packet to {to}"), || {
            Ok(node.drops(reason)? == before + 1)
        })?;
        is_empty(&socket)?;
    }
    Ok(())
}

fn a_machine_behind_another_interface_reaches_services_but_neither_pods_nor_remote_nodes(
    lab: &Lab,
) -> Result<()> {
    let node = lab.node("a1")?;
    let machine = behind(lab, "dmz")?;
    for (host, to) in targets(lab)? {
        let socket = host.udp(PORT)?;
        let rule = match to == lab.pod("a1")?.at(PORT) {
            true => "oifname \"pod*\"",
            false => "oifname \"ipip0\"",
        };
        is_dropped(node, rule, || {
            sends(&machine, machine.address, to, b"routed")
        })
        .with_context(|| format!("to {to}"))?;
        is_empty(&socket)?;
    }
    for endpoint in [lab.nth_pod("a1", 1)?, lab.pod("b1")?] {
        let _server = EchoServer::start(endpoint, PORT)?;
        let _service = Service {
            cluster: CLUSTER,
            node_port: 30_095,
            endpoint: endpoint.at(PORT),
            masquerade: false,
        }
        .install(node)?;
        udp_exchange(&machine.host, 0, CLUSTER, 1000)?;
    }
    // Pods may begin connections to the machine.
    let _server = EchoServer::start(&machine.host, PORT)?;
    let to = SocketAddrV4::new(machine.address, PORT);
    udp_exchange(lab.pod("a1")?, 0, to, 1000)?;
    Ok(())
}

/// The name is in the lab's `routedInterfaces`.
fn an_interface_that_the_operator_names_leads_to_pods_and_remote_nodes(lab: &Lab) -> Result<()> {
    let machine = behind(lab, "routed0")?;
    for (host, to) in targets(lab)? {
        let _server = EchoServer::start(host, PORT)?;
        udp_exchange(&machine.host, 0, to, 1000).with_context(|| format!("to {to}"))?;
    }
    Ok(())
}

fn a_machine_behind_another_interface_cannot_use_addresses_of_pods_and_remote_nodes(
    lab: &Lab,
) -> Result<()> {
    let node = lab.node("a1")?;
    let machine = behind(lab, "dmz")?;
    let socket = node.udp(PORT)?;
    let to = SocketAddrV4::new([10, 99, 0, 1].into(), PORT);
    for (from, rule) in [
        (lab.pod("a1")?.address(), "fib saddr oifname \"pod*\""),
        (lab.pod("b1")?.address(), "fib saddr oifname \"ipip0\""),
        (lab.node("c1")?.internal_ip(), "fib saddr oifname \"ipip0\""),
    ] {
        is_dropped(node, rule, || sends(&machine, from, to, b"spoofed"))
            .with_context(|| format!("from {from}"))?;
    }
    is_empty(&socket)
}

fn a_process_without_privileges_cannot_speak_for_its_node_and_pods(lab: &Lab) -> Result<()> {
    let (node, victim) = (lab.node("a1")?, lab.pod("b1")?);
    let socket = victim.udp(PORT)?;
    let rule = "oifname \"eth0\" udp dport 5555";
    for from in [lab.pod("a1")?.address(), node.internal_ip()] {
        let inner = packet_builder::udp(SocketAddrV4::new(from, PORT), victim.at(PORT), b"forged")?;
        let before = dropped(node, rule)?;
        let to = SocketAddrV4::new(victim.node().public()?, DEFAULT_UDP_PORT);
        let sent = node.udp(0)?.send_to(&inner, to);
        ensure!(sent.is_err(), "the process could send to {to}");
        ensure!(dropped(node, rule)? == before + 1, "{rule}");
    }
    is_empty(&socket)
}

fn a_pod_cannot_reach_the_tunnels_port_of_a_node_through_a_service(lab: &Lab) -> Result<()> {
    let (node, pod, victim) = (lab.node("a1")?, lab.nth_pod("a1", 1)?, lab.pod("b1")?);
    let socket = victim.udp(PORT)?;
    let _service = Service {
        cluster: CLUSTER,
        node_port: 30_096,
        endpoint: SocketAddrV4::new(victim.node().public()?, DEFAULT_UDP_PORT),
        masquerade: true,
    }
    .install(node)?;
    let rule = "oifname \"eth0\" udp dport 5555";
    // Another pod of its node.
    let from = lab.pod("a1")?.at(PORT);
    let inner = packet_builder::udp(from, victim.at(PORT), b"forged")?;
    is_dropped(node, rule, || {
        pod.udp(0)?.send_to(&inner, CLUSTER)?;
        Ok(())
    })?;
    is_empty(&socket)
}

/// A node that this agent does not know yet accepts tunnel packets of this node.
fn a_pod_cannot_send_tunnel_packets_to_a_node_that_its_own_does_not_know(lab: &Lab) -> Result<()> {
    let (node, pod) = (lab.node("a1")?, lab.nth_pod("a1", 1)?);
    let inner = packet_builder::udp(lab.pod("a1")?.at(PORT), lab.pod("b1")?.at(PORT), b"forged")?;
    is_dropped(node, "oifname \"eth0\" udp dport 5555", || {
        let to = SocketAddrV4::new(STRANGER, DEFAULT_UDP_PORT);
        pod.udp(0)?.send_to(&inner, to)?;
        Ok(())
    })?;
    is_dropped(node, "oifname \"eth0\" ip protocol 4", || {
        packet_builder::send(pod, &packet_builder::ipip(pod.address(), STRANGER, &inner)?)
    })
}
