//! Services: replies pass through the netfilter of the node that translated the request.

use anyhow::{Result, ensure};
use ipip_abi::Counter;
use ipip_lab::{Lab, LabNode, LabPod, service::Service};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    host::Host,
    tests,
};
use std::net::{Ipv4Addr, SocketAddrV4};

pub const TESTS: &[Test<Lab>] = tests![
    cluster_ip_leads_to_a_pod_of_another_cloud,
    cluster_ip_leads_to_a_pod_of_the_same_node,
    cluster_ip_works_from_the_node_itself,
    node_port_with_masquerade_leads_to_a_pod_of_another_cloud,
    node_port_without_masquerade_shows_the_client_to_a_local_pod,
    a_direct_connection_after_one_by_cluster_ip_may_have_the_same_ports,
    a_node_whose_default_route_has_another_address_enters_the_tunnel_with_its_internal_ip,
];

const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
const PORT: u16 = 8080;

fn to(endpoint: &LabPod, node_port: u16, masquerade: bool) -> Service {
    Service {
        cluster: CLUSTER,
        node_port,
        endpoint: endpoint.at(PORT),
        masquerade,
    }
}

/// Connects by TCP and UDP, and returns the client's address as the endpoint sees it.
fn both(from: &Host, at: SocketAddrV4) -> Result<Ipv4Addr> {
    let seen = *tcp_exchange(from, 0, at, 300_000)?.ip();
    let seen_by_udp = *udp_exchange(from, 0, at, 1000)?.ip();
    ensure!(seen == seen_by_udp, "TCP as {seen}, UDP as {seen_by_udp}");
    Ok(seen)
}

fn seen_as(expected: Ipv4Addr, from: &Host, at: SocketAddrV4) -> Result<()> {
    let seen = both(from, at)?;
    ensure!(
        seen == expected,
        "{} is seen as {seen}, not {expected}",
        from.name()
    );
    Ok(())
}

fn cluster_ip_leads_to_a_pod_of_another_cloud(lab: &Lab) -> Result<()> {
    let (client, endpoint) = (lab.pod("a1")?, lab.pod("b1")?);
    let _server = EchoServer::start(endpoint, PORT)?;
    let _service = to(endpoint, 30_080, true).install(client.node())?;
    seen_as(client.address(), client, CLUSTER)
}

fn cluster_ip_leads_to_a_pod_of_the_same_node(lab: &Lab) -> Result<()> {
    let (client, endpoint) = (lab.nth_pod("a1", 0)?, lab.nth_pod("a1", 1)?);
    let _server = EchoServer::start(endpoint, PORT)?;
    let _service = to(endpoint, 30_081, true).install(client.node())?;
    seen_as(client.address(), client, CLUSTER)
}

fn cluster_ip_works_from_the_node_itself(lab: &Lab) -> Result<()> {
    let node: &LabNode = lab.node("a1")?;
    for endpoint in [lab.pod("a1")?, lab.pod("b1")?] {
        let _server = EchoServer::start(endpoint, PORT)?;
        let _service = to(endpoint, 30_082, true).install(node)?;
        seen_as(node.internal_ip(), node, CLUSTER)?;
    }
    Ok(())
}

fn node_port_with_masquerade_leads_to_a_pod_of_another_cloud(lab: &Lab) -> Result<()> {
    let (node, endpoint) = (lab.node("a1")?, lab.pod("b1")?);
    let _server = EchoServer::start(endpoint, PORT)?;
    let _service = to(endpoint, 30_083, true).install(node)?;
    let inside = SocketAddrV4::new(node.internal_ip(), 30_083);
    let outside = SocketAddrV4::new(node.public()?, 30_083);
    for (client, at) in [
        (&**lab.pod("c1")?, inside),
        (&***lab.node("c1")?, inside),
        (&**lab.pod("a2")?, inside),
        (&***lab.node("a2")?, inside),
        (&**lab.pod("a1")?, inside),
        (&lab.fabric().web, outside),
    ] {
        seen_as(node.internal_ip(), client, at)?;
    }
    Ok(())
}

fn node_port_without_masquerade_shows_the_client_to_a_local_pod(lab: &Lab) -> Result<()> {
    let (node, endpoint) = (lab.node("a1")?, lab.nth_pod("a1", 1)?);
    let _server = EchoServer::start(endpoint, PORT)?;
    let _service = to(endpoint, 30_084, false).install(node)?;
    let inside = SocketAddrV4::new(node.internal_ip(), 30_084);
    for pod in [lab.pod("c1")?, lab.pod("a2")?, lab.pod("a1")?] {
        seen_as(pod.address(), pod, inside)?;
    }
    for peer in [lab.node("c1")?, lab.node("a2")?] {
        seen_as(peer.internal_ip(), peer, inside)?;
    }
    let outside = SocketAddrV4::new(node.public()?, 30_084);
    seen_as(ipip_lab::topology::WEB, &lab.fabric().web, outside)
}

fn a_direct_connection_after_one_by_cluster_ip_may_have_the_same_ports(lab: &Lab) -> Result<()> {
    let client = lab.pod("a1")?;
    for (endpoint, source_port) in [(lab.pod("b1")?, 40_001), (lab.nth_pod("a1", 1)?, 40_002)] {
        let _server = EchoServer::start(endpoint, PORT)?;
        let service = to(endpoint, 30_085, true).install(client.node())?;
        udp_exchange(client, source_port, CLUSTER, 100)?;
        tcp_exchange(client, source_port, CLUSTER, 100_000)?;
        drop(service);
        let forgotten = client.node().counter(Counter::FlowForgotten)?;
        udp_exchange(client, source_port, endpoint.at(PORT), 100)?;
        tcp_exchange(client, source_port, endpoint.at(PORT), 100_000)?;
        ensure!(
            client.node().counter(Counter::FlowForgotten)? >= forgotten + 2,
            "the stale entries of both protocols should be deleted"
        );
    }
    Ok(())
}

/// Gives the default route of a node another source address. Restores the route when dropped.
struct OtherSource<'a>(&'a LabNode, &'static str);

impl<'a> OtherSource<'a> {
    fn new(node: &'a LabNode, address: &'static str) -> Result<Self> {
        node.ip(&format!("address add {address}/24 dev eth0"))?;
        node.ip(&format!("route change default via 10.0.0.1 src {address}"))?;
        Ok(Self(node, address))
    }
}

impl Drop for OtherSource<'_> {
    fn drop(&mut self) {
        let Self(node, address) = self;
        for back in [
            "route change default via 10.0.0.1".to_string(),
            format!("address delete {address}/24 dev eth0"),
        ] {
            if let Err(error) = node.ip(&back) {
                eprintln!("restoring a route: {error:#}");
            }
        }
    }
}

fn a_node_whose_default_route_has_another_address_enters_the_tunnel_with_its_internal_ip(
    lab: &Lab,
) -> Result<()> {
    let (node, endpoint) = (lab.node("a1")?, lab.pod("b1")?);
    let _other = OtherSource::new(node, "10.0.0.99")?;
    let _server = EchoServer::start(endpoint, PORT)?;
    let _service = to(endpoint, 30_086, true).install(node)?;
    // A process on the node chooses its source before DNAT. For a client outside, kube-proxy's masquerading
    // chooses the interface's address.
    seen_as(node.internal_ip(), node, CLUSTER)?;
    let outside = SocketAddrV4::new(node.public()?, 30_086);
    seen_as(node.internal_ip(), &lab.fabric().web, outside)
}
