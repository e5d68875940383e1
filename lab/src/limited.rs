//! The proof that the reference plugin `bandwidth` limits our pods: its qdiscs count what passes, and
//! throw away what is too much.

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
use serde_json::Value;
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Bits per second.
const RATE: u64 = 8_000_000;
/// Bits, and so much that large packets of the kernel pass whole.
const BURST: u64 = 800_000;
const PORT: u16 = 7100;
/// Bytes of a datagram that fits every path.
const DATAGRAM: usize = 1200;
/// Four times the rate.
const PER_SECOND: u64 = 4 * RATE / 8 / DATAGRAM as u64;
const FLOOD: Duration = Duration::from_secs(2);
/// The buffers of fewer would hold back what the qdisc is to throw away.
const SENDERS: usize = 4;

/// What a qdisc has counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    bytes: u64,
    drops: u64,
    overlimits: u64,
}

/// Starts a pod on `a1` whose bandwidth `plugin` limits both ways, and proves that it does: to and from
/// a pod of another cloud, a pod of the same node, the node, and by a Service.
pub fn prove(lab: &Lab, plugin: &Path) -> Result<()> {
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
    let (sends, gets) = (ifb_of(&pod)?, pod.veth()?.to_owned());
    for (name, peer, fast) in [
        (
            "remote",
            remote,
            [Counter::PodToTunnel, Counter::TunnelToPod],
        ),
        ("local", neighbour, [Counter::PodToPod, Counter::PodToPod]),
    ] {
        let before = fast.map(|counter| node.counter(counter));
        let detours = node.counter(Counter::LimitedToStack)?;
        is_limited(&pod, &sends, &pod, peer, peer.address()).context(name)?;
        is_limited(&pod, &gets, peer, &pod, pod.address()).context(name)?;
        let after = fast.map(|counter| node.counter(counter));
        for (before, after) in before.into_iter().zip(after) {
            ensure!(before? == after?, "{name}: packets took the fast path");
        }
        let detours = node.counter(Counter::LimitedToStack)? - detours;
        ensure!(detours > 2 * PER_SECOND, "{name}: only {detours} detours");
    }
    works(lab, &pod, remote, neighbour)?;
    pod.delete()?;
    let left = node.ip("-o link show type ifb")?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// A flood from one host to another passes `qdisc`, which lets only so much through.
fn is_limited(pod: &LabPod, qdisc: &str, from: &Host, to: &Host, at: Ipv4Addr) -> Result<()> {
    let before = counted(pod, qdisc)?;
    let receiver = to.udp(PORT)?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let senders: Vec<UdpSocket> = (0..SENDERS)
        .map(|_| sender(from, SocketAddrV4::new(at, PORT)))
        .collect::<Result<_>>()?;
    let (offered, arrived) = thread::scope(|scope| {
        let arrived = scope.spawn(|| receive(&receiver));
        (flood(&senders), arrived.join().unwrap_or_default())
    });
    let after = counted(pod, qdisc)?;
    let most = (RATE * FLOOD.as_secs() + BURST) / 8;
    ensure!(offered > 2 * most, "only {offered} bytes were offered");
    ensure!(
        (most / 2..most + most / 4).contains(&arrived),
        "{arrived} bytes arrived of {offered}, {most} may; {qdisc}: {before:?}, then {after:?}"
    );
    let passed = after.bytes - before.bytes;
    ensure!(
        passed >= arrived && passed < 2 * arrived,
        "{qdisc} let {passed} bytes pass, {arrived} arrived"
    );
    ensure!(
        after.overlimits > before.overlimits && after.drops > before.drops,
        "{qdisc} limited nothing: {before:?}, then {after:?}"
    );
    Ok(())
}

/// What must work for a limited pod as for any other.
fn works(lab: &Lab, pod: &LabPod, remote: &LabPod, neighbour: &LabPod) -> Result<()> {
    let node = pod.node();
    for peer in [remote, neighbour] {
        let _server = EchoServer::start(peer, 8080)?;
        let _own = EchoServer::start(pod, 8081)?;
        for (from, to, at) in [(pod, peer, 8080), (peer, pod, 8081)] {
            let seen = tcp_exchange(from, 0, to.at(at), 200_000)?;
            ensure!(*seen.ip() == from.address(), "seen as {seen}");
            udp_exchange(from, 0, to.at(at), 1000)?;
            // In fragments.
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
    // As far away as from any other pod.
    let hops = |from: &LabPod| Ping::to(remote.address()).reply_ttl(from);
    ensure!(hops(pod)? == hops(neighbour)?, "another time to live");

    // What does not fit is told, also where the pod does not know.
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

/// An error that a pod with limited sending is refused where clsact is all there is, or that is asked
/// for.
pub fn is_refused_by_clsact(lab: &Lab, plugin: &Path) -> Result<()> {
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
    // What comes to the pod can be limited all the same.
    let pod = lab.start_limited_pod("a1", "limited", limits(RATE, 0))?;
    for peer in [lab.pod("b1")?, lab.pod("a1")?] {
        is_limited(&pod, pod.veth()?, peer, &pod, pod.address())?;
    }
    pod.check()?;
    pod.delete()
}

/// The interface that `bandwidth` has made for what the pod sends.
fn ifb_of(pod: &LabPod) -> Result<String> {
    let links = pod.node().ip("-o -j link show type ifb")?;
    let links: Value = serde_json::from_str(&links)?;
    let name = links[0]["ifname"].as_str().map(str::to_owned);
    name.context("bandwidth has made no ifb")
}

/// What the token bucket of an interface has counted.
fn counted(pod: &LabPod, ifname: &str) -> Result<Counted> {
    let namespace = pod.node().name();
    let line = format!("tc -n {namespace} -s -j qdisc show dev {ifname} root");
    let qdiscs: Value = serde_json::from_str(&shell::run(&line)?)?;
    let qdisc = &qdiscs[0];
    ensure!(qdisc["kind"] == "tbf", "no tbf on {ifname}: {qdiscs}");
    let field = |name: &str| qdisc[name].as_u64().context("no such counter");
    Ok(Counted {
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

/// Bytes of payload offered.
fn flood(sockets: &[UdpSocket]) -> u64 {
    let (began, mut offered) = (Instant::now(), 0);
    while began.elapsed() < FLOOD {
        let due = began.elapsed().as_micros() as u64 * PER_SECOND / 1_000_000;
        while offered < due {
            // One that has too much on its way already is held back by its own buffer.
            let _ = sockets[offered as usize % sockets.len()].send(&[0; DATAGRAM]);
            offered += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    offered * DATAGRAM as u64
}

/// Bytes of payload that come, until nothing more does.
fn receive(socket: &UdpSocket) -> u64 {
    let (mut bytes, mut buffer) = (0, [0; 2048]);
    while let Ok(len) = socket.recv(&mut buffer) {
        bytes += len as u64;
    }
    bytes
}
