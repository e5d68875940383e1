//! Proves that the reference plugin `bandwidth` limits our pods: its qdiscs count the packets, and drop those
//! that exceed the rate.

use crate::{Lab, LabPod, Limits, service::Service};
use anyhow::{Context, Result, ensure};
use ipip_abi::Counter;
use ipip_datapath::AttachMode;
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    host::Host,
    ping::{Answer, Ping},
    shell,
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde_json::Value;
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Bits per second.
const RATE: u64 = 8_000_000;
/// Bits of a burst: more than a GSO packet of 64 KiB, which therefore passes whole.
const BURST: u64 = 800_000;
const PORT: u16 = 7100;
/// Bytes of a datagram that fits every path.
const DATAGRAM: usize = 1200;
/// Datagrams per second that are offered: four times [`RATE`].
const PER_SECOND: u64 = 4 * RATE / 8 / DATAGRAM as u64;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(2);
/// With fewer sockets, their send buffers would hold back the packets that the qdisc should drop.
const SENDERS: usize = 4;

/// Counters of a qdisc.
#[derive(Clone, Copy, Debug)]
struct QdiscCounters {
    bytes: u64,
    drops: u64,
    overlimits: u64,
}

/// Starts a pod on `a1` whose bandwidth `plugin` limits both ways. Proves that the limit holds to and from a
/// pod of another cloud and a pod of the same node, and that all other traffic works.
pub fn expect_limits_hold(lab: &Lab, plugin: &Path) -> Result<()> {
    let limits = Limits {
        plugin: plugin.into(),
        ingress: RATE,
        egress: RATE,
        burst: BURST,
    };
    let pod = lab.start_limited_pod("a1", "limited", limits)?;
    pod.check()?;
    let node = pod.node().clone();
    let (remote, neighbour) = (lab.pod("b1")?, lab.pod("a1")?);
    let (egress, ingress) = (ifb_of(&pod)?, pod.veth()?.to_owned());
    for (name, peer, fast) in [
        (
            "remote",
            remote,
            [Counter::PodToTunnel, Counter::TunnelToPod],
        ),
        ("local", neighbour, [Counter::PodToPod, Counter::PodToPod]),
    ] {
        let before = fast.map(|counter| node.counter(counter));
        let slow_before = node.counter(Counter::LimitedToStack)?;
        expect_limited(&pod, &egress, &pod, peer, peer.address()).context(name)?;
        expect_limited(&pod, &ingress, peer, &pod, pod.address()).context(name)?;
        let after = fast.map(|counter| node.counter(counter));
        for (before, after) in before.into_iter().zip(after) {
            ensure!(before? == after?, "{name}: packets took the fast path");
        }
        let slow = node.counter(Counter::LimitedToStack)? - slow_before;
        ensure!(
            slow > 2 * PER_SECOND,
            "{name}: only {slow} packets took the slow path"
        );
    }
    expect_all_traffic_works(lab, &pod, remote, neighbour)?;
    pod.delete()?;
    let left = node.ip("-o link show type ifb")?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// Floods `to` at the address `at`, and expects that the root qdisc of the interface `qdisc` limits the flood to its
/// rate.
fn expect_limited(pod: &LabPod, qdisc: &str, from: &Host, to: &Host, at: Ipv4Addr) -> Result<()> {
    let before = qdisc_counters(pod, qdisc)?;
    let receiver = to.udp(PORT)?;
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    // Packets wait here while the receiving thread is not scheduled.
    setsockopt(&receiver, RcvBufForce, &(16 << 20))?;
    let senders: Vec<UdpSocket> = (0..SENDERS)
        .map(|_| sender(from, SocketAddrV4::new(at, PORT)))
        .collect::<Result<_>>()?;
    let flooding = AtomicBool::new(true);
    let ((offered, took), arrived) = thread::scope(|scope| {
        let arrived = scope.spawn(|| receive(&receiver, &flooding));
        let flood = flood(&senders);
        flooding.store(false, Ordering::Relaxed);
        (flood, arrived.join().unwrap_or_default())
    });
    let after = qdisc_counters(pod, qdisc)?;
    let most = (RATE * took.as_millis() as u64 / 1000 + BURST) / 8;
    ensure!(offered > 2 * most, "only {offered} bytes were offered");
    ensure!(
        (most / 2..most + most / 4).contains(&arrived),
        "{arrived} of {offered} bytes arrived, {most} are allowed; {qdisc}: {before:?}, then {after:?}"
    );
    let passed = after.bytes - before.bytes;
    ensure!(
        passed >= arrived && passed < 2 * arrived,
        "{qdisc} passed {passed} bytes, {arrived} arrived"
    );
    ensure!(
        after.overlimits > before.overlimits && after.drops > before.drops,
        "{qdisc} limited nothing: {before:?}, then {after:?}"
    );
    Ok(())
}

/// Expects that all kinds of traffic work for a limited pod as they do for any other pod.
fn expect_all_traffic_works(
    lab: &Lab,
    pod: &LabPod,
    remote: &LabPod,
    neighbour: &LabPod,
) -> Result<()> {
    let node = pod.node();
    for peer in [remote, neighbour] {
        let _server = EchoServer::start(peer, 8080)?;
        let _own = EchoServer::start(pod, 8081)?;
        for (from, to, at) in [(pod, peer, 8080), (peer, pod, 8081)] {
            let seen = tcp_exchange(from, 0, to.at(at), 200_000)?;
            ensure!(*seen.ip() == from.address(), "seen as {seen}");
            udp_exchange(from, 0, to.at(at), 1000)?;
            // Larger than the MTU, so it travels in fragments.
            udp_exchange(from, 0, to.at(at), 4000)?;
        }
        let cluster = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80);
        let service = |endpoint| Service {
            cluster,
            node_port: 30_081,
            endpoint,
            masquerade: true,
        };
        let installed = service(peer.at(8080)).install(node)?;
        tcp_exchange(pod, 0, cluster, 100_000).context("a Service, from the limited pod")?;
        drop(installed);
        let _installed = service(pod.at(8081)).install(peer.node())?;
        tcp_exchange(peer, 0, cluster, 100_000).context("a Service, to the limited pod")?;
    }
    for host in [&**node, &***lab.node("b1")?] {
        Ping::to(pod.address()).reply_ttl(host)?;
    }
    Ping::to(lab.node("b1")?.internal_ip()).reply_ttl(pod)?;
    // The limit adds no hop.
    let hops = |from: &LabPod| Ping::to(remote.address()).reply_ttl(from);
    ensure!(
        hops(pod)? == hops(neighbour)?,
        "the TTL differs from that of an unlimited pod"
    );

    // A packet that is too large gets an ICMP error, even if the pod's own MTU allows it.
    let fits = lab.topology().uplink_mtu as u16 - 20;
    pod.ip("link set eth0 mtu 1500")?;
    node.ip(&format!("link set {} mtu 1500", pod.veth()?))?;
    let large = Ping::to(remote.address()).bytes(1500 - 28);
    large.reply_ttl(pod)?;
    let answer = large.dont_fragment().send(pod)?;
    ensure!(
        matches!(answer, Answer::FragmentationNeeded { mtu, .. } if mtu == fits),
        "not `fragmentation needed` with {fits}: {answer:?}"
    );
    Ok(())
}

/// Expects that, with clsact, an egress limit of a pod is refused and an ingress limit works.
pub fn expect_clsact_refuses_egress_limits(lab: &Lab, plugin: &Path) -> Result<()> {
    let mode: AttachMode = lab.node("a1")?.attach_mode().parse()?;
    ensure!(!mode.is_tcx()?, "attach mode {mode} is not clsact here");
    let limits = |ingress, egress| Limits {
        plugin: plugin.into(),
        ingress,
        egress,
        burst: BURST,
    };
    let refused = lab.start_limited_pod("a1", "refused", limits(0, RATE));
    let error = format!("{:#}", refused.err().context("it was not refused")?);
    for named in ["runtimeConfig.bandwidth.egressRate", "8000000", "6.6"] {
        ensure!(error.contains(named), "{named} is not in: {error}");
    }
    // An ingress limit works with clsact, too.
    let pod = lab.start_limited_pod("a1", "limited", limits(RATE, 0))?;
    for peer in [lab.pod("b1")?, lab.pod("a1")?] {
        expect_limited(&pod, pod.veth()?, peer, &pod, pod.address())?;
    }
    pod.check()?;
    pod.delete()
}

/// The interface that `bandwidth` has made to limit the pod's egress.
fn ifb_of(pod: &LabPod) -> Result<String> {
    let links = pod.node().ip("-o -j link show type ifb")?;
    let links: Value = serde_json::from_str(&links)?;
    let name = links[0]["ifname"].as_str().map(str::to_owned);
    name.context("bandwidth has made no interface of type ifb")
}

/// Counters of the token bucket of an interface.
fn qdisc_counters(pod: &LabPod, ifname: &str) -> Result<QdiscCounters> {
    let namespace = pod.node().name();
    let line = format!("tc -n {namespace} -s -j qdisc show dev {ifname} root");
    let qdiscs: Value = serde_json::from_str(&shell::run(&line)?)?;
    let qdisc = &qdiscs[0];
    ensure!(qdisc["kind"] == "tbf", "no tbf on {ifname}: {qdiscs}");
    let field = |name: &str| qdisc[name].as_u64().context("no such counter");
    Ok(QdiscCounters {
        bytes: field("bytes")?,
        drops: field("drops")?,
        overlimits: field("overlimits")?,
    })
}

fn sender(from: &Host, to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = from.udp(0)?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Sends for [`FLOOD`], and returns the bytes of payload that it offered and the time that it took.
fn flood(sockets: &[UdpSocket]) -> (u64, Duration) {
    let (began, mut offered) = (Instant::now(), 0);
    while began.elapsed() < FLOOD {
        let due = began.elapsed().as_micros() as u64 * PER_SECOND / 1_000_000;
        while offered < due {
            // A full send buffer refuses the packet.
            let _ = sockets[offered as usize % sockets.len()].send(&[0; DATAGRAM]);
            offered += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    (offered * DATAGRAM as u64, began.elapsed())
}

/// Counts the bytes of payload that arrive while the flood goes on, and until nothing more arrives.
fn receive(socket: &UdpSocket, flooding: &AtomicBool) -> u64 {
    let (mut bytes, mut buffer) = (0, [0; 2048]);
    loop {
        let over = !flooding.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(len) => bytes += len as u64,
            Err(_) if over => return bytes,
            Err(_) => {}
        }
    }
}
