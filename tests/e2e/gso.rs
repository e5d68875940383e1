//! Large packets (GSO) of every kind, between nodes of different encapsulations. Each suite runs on uplinks that segment
//! packets and on uplinks that pass them whole.

use anyhow::{Context, Result, bail, ensure};
use ipip_lab::{Lab, LabNode, LabPod, Topology, service::Service};
use ipip_netlink::{Features, Netlink, is_segmentation_offload};
use ipip_testkit::{
    harness::Test,
    host::Host,
    ping::{Answer, Ping},
    tests,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::UdpGsoSegment},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Lab>] = tests![
    packets_that_the_kernel_drops_on_an_uplink_are_in_the_status,
    bulk_data_passes_between_pods_by_each_pair_of_encapsulations,
    bulk_data_passes_a_node_port_on_a_third_node_by_each_pair_of_encapsulations,
    bulk_data_passes_a_vxlan_between_pods,
    bulk_data_passes_a_vxlan_between_pods_whose_offloads_are_on,
    datagrams_that_a_pod_sends_as_one_arrive,
];

/// Bytes that are sent in each direction.
const BYTES: usize = 16 << 20;
const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 8080;

/// The node `c1` uses `udp`, all others `ipip`. The tests' nodes are in clouds without a bridge, because a bridge would
/// segment packets that were built wrongly.
pub fn segmenting() -> Topology {
    Topology {
        segmenting_uplinks: true,
        ..whole()
    }
}

pub fn whole() -> Topology {
    let mut topology = Topology::three_clouds();
    topology.nodes[3].encapsulation = Some("udp".into());
    topology
}

/// Sends [`BYTES`] over one connection to `at`, where `server` listens, and the same number back.
fn bulk(client: &Host, at: SocketAddrV4, server: &Host, port: u16) -> Result<()> {
    let listener = server.listen(port)?;
    let near = client.connect(at)?;
    let (far, _) = listener.accept()?;
    for (from, to, what) in [(&near, &far, "there"), (&far, &near, "back")] {
        transfer(from, to).with_context(|| format!("{what}, from {} to {at}", client.name()))?;
    }
    Ok(())
}

fn transfer(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let chunk: Vec<u8> = (0..1 << 16).map(|at| (at / 251) as u8).collect();
    for stream in [from, to] {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
    }
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            for _ in 0..BYTES / chunk.len() {
                from.write_all(&chunk)?;
            }
            Ok(())
        });
        let mut received = vec![0; chunk.len()];
        for count in 0..BYTES / chunk.len() {
            let read = to.read_exact(&mut received);
            if read.is_err() || Instant::now() > deadline {
                // Ends the sender too.
                to.shutdown(std::net::Shutdown::Both)?;
                bail!("{} of {BYTES} bytes in {DEADLINE:?}", count * chunk.len());
            }
            ensure!(received == chunk, "the bytes were changed");
        }
        sender.join().expect("the sender does not panic")
    })
}

/// What the kernel dropped on a node's uplink and both ends of `ipip0`: the same by `ip -s link` and by `ipipctl status`.
fn dropped(node: &LabNode) -> Result<Vec<(String, u64, u64)>> {
    let status = node.ipipctl_json(&["status"])?;
    let rows = status["kernelDrops"].as_array().context("no kernelDrops")?;
    rows.iter()
        .map(|row| {
            let ifname = row["interface"].as_str().context("no name")?;
            let text = node.ip(&format!("-s -j link show {ifname}"))?;
            let shown: Value = serde_json::from_str(&text)?;
            let [sent, received] = ["tx", "rx"].map(|way| {
                let ours = row[format!("{way}Dropped")].as_u64();
                ours.filter(|_| shown[0]["stats64"][way]["dropped"].as_u64() == ours)
            });
            let (sent, received) = sent.zip(received).with_context(|| {
                format!("{}: ipipctl shows {row}, ip shows {text}", node.name())
            })?;
            Ok((format!("{} {ifname}", node.spec().name), sent, received))
        })
        .collect()
}

/// Runs `test`, and expects that the kernel drops nothing behind the programs of any node.
fn without_drops(lab: &Lab, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let count = || -> Result<Vec<_>> {
        let counts = lab.nodes().iter().map(|node| dropped(node));
        Ok(counts.collect::<Result<Vec<_>>>()?.concat())
    };
    let before = count()?;
    ensure!(before.len() == 3 * lab.nodes().len(), "{before:?}");
    let result = test();
    let after = count()?;
    let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
    result.with_context(|| format!("dropped: {moved:?}"))?;
    ensure!(moved.is_empty(), "dropped: {moved:?}");
    Ok(())
}

/// The other end of the wire has a smaller MTU, so the wire drops what `from_pod` sent.
fn packets_that_the_kernel_drops_on_an_uplink_are_in_the_status(lab: &Lab) -> Result<()> {
    let (from, to) = (lab.pod("b1")?, lab.pod("c1")?);
    let sent = || -> Result<u64> {
        let counts = dropped(from.node())?;
        let uplink = counts.into_iter().find(|it| it.0 == "b1 eth0");
        Ok(uplink.context("no uplink")?.1)
    };
    let before = sent()?;
    let gateway = lab.fabric().gateway("cloud-b")?;
    gateway.ip("link set lan0 mtu 1000")?;
    let answer = Ping::to(to.address()).bytes(1200).send(from);
    gateway.ip(&format!("link set lan0 mtu {}", lab.topology().uplink_mtu))?;
    ensure!(answer? == Answer::Silence);
    let after = sent()?;
    ensure!(after > before, "{before} before, {after} after");
    Ok(())
}

fn bulk_data_passes_between_pods_by_each_pair_of_encapsulations(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "b1"), ("a1", "c1")] {
        let (from, to) = (lab.pod(from)?, lab.pod(to)?);
        without_drops(lab, || bulk(from, to.at(PORT), to, PORT))?;
    }
    Ok(())
}

fn bulk_data_passes_a_node_port_on_a_third_node_by_each_pair_of_encapsulations(
    lab: &Lab,
) -> Result<()> {
    for (client, third, endpoint) in [
        ("a1", "b1", "c1"),
        ("c1", "b1", "a1"),
        ("a1", "b1", "a2"),
        ("a1", "c1", "b1"),
    ] {
        let (client, endpoint) = (lab.pod(client)?, lab.pod(endpoint)?);
        let third = lab.node(third)?;
        let service = Service {
            cluster: SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80),
            node_port: 30_090,
            endpoint: endpoint.at(PORT),
            masquerade: true,
        };
        let _rules = service.install(third)?;
        let at = SocketAddrV4::new(third.internal_ip(), service.node_port);
        without_drops(lab, || bulk(client, at, endpoint, PORT))
            .with_context(|| format!("through {}", third.name()))?;
    }
    Ok(())
}

/// A VXLAN interface in each of two pods. Dropping it removes them.
struct Vxlan<'a>([&'a LabPod; 2]);

impl<'a> Vxlan<'a> {
    fn between(one: &'a LabPod, other: &'a LabPod) -> Result<Self> {
        let vxlan = Self([one, other]);
        for (number, (from, to)) in [(one, other), (other, one)].into_iter().enumerate() {
            let (local, remote) = (from.address(), to.address());
            from.ip(&format!(
                "link add vx0 type vxlan id 7 local {local} remote {remote} dstport 4789 dev eth0"
            ))?;
            from.ip(&format!("addr add {}/24 dev vx0", Self::address(number)))?;
            from.ip("link set vx0 up")?;
        }
        Ok(vxlan)
    }

    fn address(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 1 + number as u8)
    }

    fn carry_bulk_data(&self, lab: &Lab) -> Result<()> {
        let [one, other] = self.0;
        let at = SocketAddrV4::new(Self::address(1), PORT);
        without_drops(lab, || bulk(one, at, other, PORT))
    }
}

impl Drop for Vxlan<'_> {
    fn drop(&mut self) {
        for pod in self.0 {
            if let Err(error) = pod.ip("link delete vx0") {
                eprintln!("removing a VXLAN: {error:#}");
            }
        }
    }
}

fn bulk_data_passes_a_vxlan_between_pods(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "b1")] {
        let vxlan = Vxlan::between(lab.pod(from)?, lab.pod(to)?)?;
        vxlan.carry_bulk_data(lab)?;
    }
    Ok(())
}

/// Pods that an earlier version of the plugin created, or whose processes turned the offloads on.
fn bulk_data_passes_a_vxlan_between_pods_whose_offloads_are_on(lab: &Lab) -> Result<()> {
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "b1")] {
        let pods = [lab.start_pod(from, "old")?, lab.start_pod(to, "old-too")?];
        for pod in &pods {
            pod.enter(turn_everything_on)??;
        }
        let vxlan = Vxlan::between(&pods[0], &pods[1])?;
        vxlan.carry_bulk_data(lab)?;
    }
    Ok(())
}

fn turn_everything_on() -> Result<()> {
    let link = Netlink::open()?.link("eth0")?.context("no eth0")?;
    let mut features = Features::open()?.context("no ethtool netlink")?;
    let all = features.changeable(link.index)?;
    let all: Vec<_> = all
        .iter()
        .filter(|it| is_segmentation_offload(it))
        .collect();
    Ok(features.set(link.index, &all, true)?)
}

/// `UDP_SEGMENT` of udp(7), which QUIC servers use.
fn datagrams_that_a_pod_sends_as_one_arrive(lab: &Lab) -> Result<()> {
    const SEGMENT: usize = 1200;
    const COUNT: usize = 40;
    for (from, to) in [("a1", "b1"), ("b1", "c1"), ("c1", "b1")] {
        let (from, to) = (lab.pod(from)?, lab.pod(to)?);
        let receiver = to.udp(PORT)?;
        let sender = from.udp(0)?;
        setsockopt(&sender, UdpGsoSegment, &(SEGMENT as libc::c_int))?;
        without_drops(lab, || {
            for round in 0..10_u8 {
                sender.send_to(&[round; SEGMENT * COUNT], to.at(PORT))?;
                for count in 0..COUNT {
                    let mut datagram = [0; 2 * SEGMENT];
                    let len = receiver.recv(&mut datagram).with_context(|| {
                        format!("{count} datagrams of {COUNT} from {}", from.name())
                    })?;
                    ensure!(datagram[..len] == [round; SEGMENT], "{len} bytes");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}
