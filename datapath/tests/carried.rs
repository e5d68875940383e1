//! Real packets from pod to pod over two nodes, in every way that the kernel can attach the
//! programs. Needs root and a BPF file system.

mod support;

use ipip_abi::{
    Addr, Config, Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, NodeAddr, Peer, Pod,
    Route, Tally,
};
use ipip_datapath::{AttachMode, Maps, Pins, Programs, load, remove};
use ipip_netlink::{self as netlink, Fou, Link, LinkChange, NetNs, Netlink, Veth};
use ipip_testkit::offloads::{Offload, set_offload};
use ipnetwork::Ipv4Network;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process, thread,
    time::Duration,
};
use support::{at_least, modes};

/// What both pods' interfaces take: an uplink's MTU less the larger outer header.
const POD_MTU: u32 = 1472;
const PATIENCE: Duration = Duration::from_secs(20);
/// Enough for many segments that the kernel hands over as one (GSO).
const STREAM: usize = 1 << 20;
/// How many segments that is at least.
const SEGMENTS: u64 = STREAM as u64 / POD_MTU as u64;
/// Bytes of the largest packets where the uplinks take larger ones than is usual.
const BIG_TCP: u32 = 192 << 10;

/// A node with one pod, by its number: 1 or 2.
struct Node {
    number: u8,
    pins: Pins,
    host: NetNs,
    pod: NetNs,
    names: [String; 2],
}

impl Node {
    fn new(test: &str, number: u8) -> Self {
        let name = format!("ipip-carried-{}-{test}-{number}", process::id());
        let names = [name.clone(), format!("{name}-pod")];
        let [host, pod] = [&names[0], &names[1]]
            .map(|name| NetNs::create(name).expect("a namespace (needs root)"));
        let node = Self {
            number,
            pins: Pins::new(format!("/sys/fs/bpf/{name}")),
            host,
            pod,
            names,
        };
        let veth = Veth {
            name: "veth",
            peer_name: "eth0",
            peer_ns: Some(&node.pod),
            mtu: Some(POD_MTU),
            ..Veth::default()
        };
        Netlink::open_in(&node.host)
            .unwrap()
            .add_veth(&veth)
            .unwrap();
        let host_mac = up(&node.host, "veth").mac;
        let eth0 = up(&node.pod, "eth0").index;
        let mut link = Netlink::open_in(&node.pod).unwrap();
        link.add_address(eth0, network(pod_address(number), 32))
            .unwrap();
        let all_pods = network(Ipv4Addr::new(10, 42, 0, 0), 16);
        link.replace_route(&netlink::Route::on_link(all_pods, eth0))
            .unwrap();
        let remote = pod_address(other(number));
        link.add_neighbour(eth0, remote, host_mac).unwrap();
        node
    }

    /// The datapath with all that an agent would write, and its programs attached.
    fn start(&self, mode: AttachMode, encapsulation: Encapsulation, next_hop: Option<Mac>) {
        load(&self.pins, mode).unwrap();
        let veth = link_of(&self.host, "veth");
        let uplink = link_of(&self.host, "uplink");
        let (own, remote) = (underlay(self.number), underlay(other(self.number)));
        let mut maps = Maps::open(&self.pins).unwrap();
        let config = Config {
            udp_port: DEFAULT_UDP_PORT.to_be_bytes(),
            ..Config::default()
        };
        maps.config.set(0, config, 0).unwrap();
        let pod = Pod {
            ifindex: veth.index,
            mac: Mac(link_of(&self.pod, "eth0").mac),
            host_mac: Mac(veth.mac),
            flags: 0,
        };
        let address = Addr::from(pod_address(self.number));
        maps.pods.insert(address, pod, 0).unwrap();
        for (number, peer) in [(self.number, 0), (other(self.number), 1)] {
            let key = aya::maps::lpm_trie::Key::new(24, Addr([10, 42, number, 0]));
            let route = Route::new(peer, Route::PODS);
            maps.routes.insert(&key, route, 0).unwrap();
        }
        let roles = [
            (own, NodeAddr::new(0, NodeAddr::OWN)),
            (remote, NodeAddr::new(1, NodeAddr::UNDERLAY)),
        ];
        for (address, role) in roles {
            maps.node_addrs
                .insert(Addr::from(address), role, 0)
                .unwrap();
        }
        let peer = Peer {
            underlay: remote.into(),
            source: own.into(),
            ifindex: uplink.index,
            mtu: POD_MTU as u16,
            encapsulation: encapsulation as u8,
            flags: next_hop.map_or(0, |_| Peer::MAC_KNOWN),
            next_hop_mac: next_hop.unwrap_or_default(),
            uplink_mac: Mac(uplink.mac),
            header_sum: Peer::partial_sum(own.into(), remote.into(), encapsulation),
        };
        maps.peers.set(1, peer, 0).unwrap();
        let attach = || {
            let mut programs = Programs::open(&self.pins, mode)?;
            programs.attach_pod("veth")?;
            programs.attach_uplink("uplink")
        };
        self.host.run(attach).unwrap().unwrap();
    }

    fn count(&self, counter: Counter) -> u64 {
        let maps = Maps::open(&self.pins).unwrap();
        maps.tally_counter(counter).unwrap().packets
    }

    /// Every drop by its reason, but for the IPv6 that an interface says by itself.
    fn drops(&self) -> Vec<(&'static str, u64)> {
        let maps = Maps::open(&self.pins).unwrap();
        let count = |reason: DropReason| maps.tally_drop(reason).unwrap().packets;
        DropReason::ALL
            .iter()
            .filter(|reason| !matches!(reason, DropReason::PodNotIpv4))
            .map(|reason| (reason.name(), count(*reason)))
            .filter(|(_, count)| *count != 0)
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let removed = self.host.run(|| remove(&self.pins));
        let deleted = self.names.each_ref().map(|name| NetNs::delete(name));
        if !thread::panicking() {
            removed.unwrap().expect("the test's pins can be removed");
            for deleted in deleted {
                deleted.expect("the test's namespace can be removed");
            }
        }
    }
}

fn other(number: u8) -> u8 {
    3 - number
}

fn pod_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, number, 2)
}

fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Network {
    Ipv4Network::new(address, prefix).unwrap()
}

fn link_of(netns: &NetNs, name: &str) -> Link {
    let mut link = Netlink::open_in(netns).unwrap();
    link.link(name).unwrap().expect("the test made it")
}

/// Brings an interface up.
fn up(netns: &NetNs, name: &str) -> Link {
    let found = link_of(netns, name);
    let change = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let mut link = Netlink::open_in(netns).unwrap();
    link.change_link(found.index, &change).unwrap();
    found
}

/// Two nodes whose uplinks are joined. The first knows its next hop's MAC, the second asks the
/// kernel for it.
fn nodes(test: &str, mode: AttachMode, encapsulation: Encapsulation) -> [Node; 2] {
    let nodes = [1, 2].map(|number| Node::new(&format!("{test}-{mode}"), number));
    let wire = Veth {
        name: "uplink",
        peer_name: "uplink",
        peer_ns: Some(&nodes[1].host),
        ..Veth::default()
    };
    let mut link = Netlink::open_in(&nodes[0].host).unwrap();
    link.add_veth(&wire).unwrap();
    let macs = nodes.each_ref().map(|node| {
        let uplink = up(&node.host, "uplink");
        let mut link = Netlink::open_in(&node.host).unwrap();
        let address = network(underlay(node.number), 24);
        link.add_address(uplink.index, address).unwrap();
        Mac(uplink.mac)
    });
    nodes[0].start(mode, encapsulation, Some(macs[1]));
    nodes[1].start(mode, encapsulation, None);
    nodes
}

/// A connection from the first node's pod to the second's: both ends, the client's first.
fn connection([client, server]: &[Node; 2], at: SocketAddr) -> [TcpStream; 2] {
    let listener = server.pod.run(|| TcpListener::bind(at)).unwrap().unwrap();
    let connect = || TcpStream::connect_timeout(&at, PATIENCE);
    let stream = client.pod.run(connect).unwrap().expect("a connection");
    let (other_end, _) = listener.accept().unwrap();
    for stream in [&stream, &other_end] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    [stream, other_end]
}

/// Sends a datagram and a stream from the first node's pod to the second's, and both back.
fn talk(nodes: &[Node; 2]) {
    let [client, server] = nodes;
    let at = SocketAddr::from((pod_address(2), 7));
    let [socket, echo] = [(client, 1), (server, 2)].map(|(node, number)| {
        let at = SocketAddr::from((pod_address(number), 7));
        let socket = node.pod.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    });
    let mut buffer = [0; 64];
    socket.send_to(b"over", at).unwrap();
    let (len, from) = echo.recv_from(&mut buffer).expect("the datagram arrives");
    assert_eq!(from, SocketAddr::from((pod_address(1), 7)));
    echo.send_to(&buffer[..len], from).unwrap();
    let (len, from) = socket.recv_from(&mut buffer).expect("it comes back");
    assert_eq!((from, &buffer[..len]), (at, &b"over"[..]));

    let [mut stream, mut echo] = connection(nodes, at);
    let sent: Vec<u8> = (0..STREAM).map(|at| (at / 251) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; STREAM];
            echo.read_exact(&mut bytes).expect("the stream arrives");
            echo.write_all(&bytes).expect("it is sent back");
        });
        stream.write_all(&sent).unwrap();
        let mut back = vec![0; STREAM];
        stream.read_exact(&mut back).expect("it comes back");
        assert!(back == sent, "the stream changed on the way");
    });
}

fn is_carried_by(test: &str, encapsulation: Encapsulation) {
    for mode in modes() {
        let nodes = nodes(test, mode, encapsulation);
        talk(&nodes);
        for node in &nodes {
            let at = format!("{mode}, node {}", node.number);
            assert_eq!(node.drops(), [], "{at}");
            let (sent, taken) = (
                node.count(Counter::PodToTunnel),
                node.count(Counter::TunnelToPod),
            );
            assert!(sent > 2 && taken > 2, "{at}: {sent} sent, {taken} taken");
        }
        // One next hop was cached, the other asked for.
        let asked = nodes.each_ref().map(|node| {
            let asked = node.count(Counter::NeighbourFallback);
            asked == node.count(Counter::PodToTunnel)
        });
        assert_eq!(asked, [false, true], "{mode}");
    }
}

#[test]
fn what_pods_of_two_nodes_tell_each_other_is_carried_in_ip_in_ip() {
    is_carried_by("ipip", Encapsulation::Ipip);
}

#[test]
fn what_pods_of_two_nodes_tell_each_other_is_carried_in_udp() {
    is_carried_by("udp", Encapsulation::Udp);
}

/// Has packets of the MTU's size on the wire, and the nodes merge them on arrival. A veth merges only what
/// comes from one that segments.
fn segment(nodes: &[Node; 2]) {
    for node in nodes {
        let set_up = || {
            set_offload("uplink", Offload::Tso, false)?;
            set_offload("uplink", Offload::Gro, true)
        };
        node.host.run(set_up).unwrap().unwrap();
    }
}

/// How many packets both nodes take of peers while pods talk.
fn taken(nodes: &[Node; 2]) -> [u64; 2] {
    let count = || {
        nodes
            .each_ref()
            .map(|node| node.count(Counter::TunnelToPod))
    };
    let before = count();
    talk(nodes);
    let after = count();
    [0, 1].map(|node| after[node] - before[node])
}

fn are_merged(taken: [u64; 2], mode: AttachMode) {
    assert!(
        taken.iter().all(|taken| *taken < SEGMENTS / 2),
        "{mode}: {taken:?} packets of {SEGMENTS} segments each way"
    );
}

#[test]
fn segments_in_ip_in_ip_are_merged_on_arrival() {
    for mode in modes() {
        let nodes = nodes("merged-ipip", mode, Encapsulation::Ipip);
        segment(&nodes);
        let taken = taken(&nodes);
        // Without XDP a veth can merge since Linux 5.13.
        if at_least(5, 13) {
            are_merged(taken, mode);
        }
    }
}

#[test]
fn segments_in_udp_are_merged_on_arrival_where_a_socket_takes_them() {
    for mode in modes() {
        let nodes = nodes("merged-udp", mode, Encapsulation::Udp);
        segment(&nodes);
        let one_by_one = taken(&nodes);
        assert!(
            one_by_one.iter().all(|taken| *taken >= SEGMENTS),
            "{mode}: {one_by_one:?}"
        );
        for node in &nodes {
            let Some(mut fou) = Fou::open_in(&node.host).unwrap() else {
                let module = Path::new("/sys/module/fou");
                assert!(
                    !module.exists(),
                    "the kernel has FOU and yet its family is not found"
                );
                return;
            };
            let socket = SocketAddrV4::new(underlay(node.number), DEFAULT_UDP_PORT);
            fou.add(socket).unwrap();
            assert_eq!(fou.sockets().unwrap(), [socket]);
        }
        let taken = taken(&nodes);
        // Linux before 6.9 loses what it merges for a socket that is bound to an address; agents know.
        if at_least(6, 9) {
            are_merged(taken, mode);
        }
    }
}

/// Sends a stream one way, long enough that the sender makes its largest packets.
fn stream(nodes: &[Node; 2], len: usize) {
    let [mut stream, mut taker] = connection(nodes, SocketAddr::from((pod_address(2), 8)));
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunk: Vec<u8> = (0..STREAM).map(|at| (at / 251) as u8).collect();
            for _ in 0..len / STREAM {
                stream.write_all(&chunk).expect("the stream is sent");
            }
        });
        let (mut chunk, mut first) = (vec![0; STREAM], vec![0; STREAM]);
        taker.read_exact(&mut first).expect("the stream arrives");
        for _ in 1..len / STREAM {
            taker.read_exact(&mut chunk).expect("the rest of it");
            assert!(chunk == first, "the stream changed on the way");
        }
    });
}

/// Packets of which IPv4's total length cannot say how long they are, as a pod makes them whose interface may.
fn is_carried_in_big_packets(test: &str, encapsulation: Encapsulation) {
    // `gso_ipv4_max_size` came with 6.3.
    if !at_least(6, 3) {
        return;
    }
    for mode in modes() {
        let nodes = nodes(test, mode, encapsulation);
        for node in &nodes {
            for (netns, name) in [(&node.pod, "eth0"), (&node.host, "uplink")] {
                let link = link_of(netns, name);
                let change = LinkChange {
                    gso_ipv4_max: Some(BIG_TCP),
                    ..LinkChange::default()
                };
                let mut netlink = Netlink::open_in(netns).unwrap();
                netlink.change_link(link.index, &change).unwrap();
                assert_eq!(link_of(netns, name).gso_ipv4_max, Some(BIG_TCP));
            }
        }
        let len = 64 * STREAM;
        stream(&nodes, len);
        let maps = Maps::open(&nodes[1].pins).unwrap();
        let Tally { packets, bytes } = maps.tally_counter(Counter::TunnelToPod).unwrap();
        assert_eq!(nodes[1].drops(), [], "{mode}");
        assert!(bytes >= len as u64, "{mode}: {bytes} bytes of {len}");
        // More to a packet than the largest that could say its length.
        assert!(
            bytes / packets > 65_535,
            "{mode}: {bytes} bytes in {packets} packets"
        );
    }
}

#[test]
fn packets_beyond_64_kib_are_carried_in_ip_in_ip() {
    is_carried_in_big_packets("big-ipip", Encapsulation::Ipip);
}

#[test]
fn packets_beyond_64_kib_are_carried_in_udp() {
    is_carried_in_big_packets("big-udp", Encapsulation::Udp);
}
