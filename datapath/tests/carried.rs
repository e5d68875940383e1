//! Real packets from pod to pod over two nodes, with each attach mode that the kernel supports. Needs root and a BPF
//! file system.

mod support;
mod two_nodes;

use ipip_abi::{Counter, DEFAULT_UDP_PORT, DropReason, Encapsulation, Mac, Tally};
use ipip_datapath::{AttachMode, Maps, Programs, load};
use ipip_netlink::{Fou, LinkChange};
use ipip_testkit::{
    node_maps::{NodeMaps, NodePeer, PeerPath},
    offloads::{merge_on_arrival, segment_in_software},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};
use support::{at_least, modes};
use two_nodes::{
    OnePodNode, POD_MTU, change_link, link_of, other, pod_address, pod_cidr, two_nodes, underlay,
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a stream: enough for many segments that the kernel handles as one packet (GSO).
const STREAM: usize = 1 << 20;
/// The minimum number of segments of such a stream.
const SEGMENTS: u64 = STREAM as u64 / POD_MTU as u64;
/// Bytes of the largest GSO packet with BIG TCP.
const BIG_TCP: u32 = 192 << 10;

impl OnePodNode {
    /// Loads the datapath, fills its maps and attaches its programs.
    fn start(&self, mode: AttachMode, encapsulation: Encapsulation, next_hop: Option<Mac>) {
        load(&self.pins, mode).unwrap();
        let uplink = link_of(&self.host, "uplink");
        let remote = other(self.number);
        let path = PeerPath {
            uplink_mac: Mac(uplink.mac),
            next_hop,
            mtu: POD_MTU as u16,
            ..PeerPath::new(underlay(remote).into(), encapsulation, uplink.index)
        };
        NodeMaps::new("own", underlay(self.number).into(), pod_cidr(self.number))
            .pod(pod_address(self.number).into(), self.entry())
            .peer(NodePeer::new(1, "remote", pod_cidr(remote)).path(path))
            .write(&mut Maps::open(&self.pins).unwrap())
            .unwrap();
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

    /// Every drop by its reason, without the IPv6 packets that the kernel sends by itself.
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

/// Two nodes with connected uplinks. The first knows the MAC of its next hop, the second looks it up in the kernel.
fn nodes(mode: AttachMode, encapsulation: Encapsulation) -> [OnePodNode; 2] {
    let nodes = two_nodes();
    let macs = nodes
        .each_ref()
        .map(|node| Mac(link_of(&node.host, "uplink").mac));
    nodes[0].start(mode, encapsulation, Some(macs[1]));
    nodes[1].start(mode, encapsulation, None);
    nodes
}

/// A connection from the first node's pod to the second's: both ends, the client's first.
fn connection([client, server]: &[OnePodNode; 2], at: SocketAddr) -> [TcpStream; 2] {
    let listener = server.pod.run(|| TcpListener::bind(at)).unwrap().unwrap();
    let connect = || TcpStream::connect_timeout(&at, TIMEOUT);
    let stream = client.pod.run(connect).unwrap().expect("a connection");
    let (other_end, _) = listener.accept().unwrap();
    for stream in [&stream, &other_end] {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    }
    [stream, other_end]
}

/// Sends a datagram and a stream from the first node's pod to the second's, and both back.
fn exchange(nodes: &[OnePodNode; 2]) {
    let [client, server] = nodes;
    let at = SocketAddr::from((pod_address(2), 7));
    let [socket, echo] = [(client, 1), (server, 2)].map(|(node, number)| {
        let at = SocketAddr::from((pod_address(number), 7));
        let socket = node.pod.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
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
        assert!(back == sent, "the stream was changed");
    });
}

fn assert_carried_by(encapsulation: Encapsulation) {
    for mode in modes() {
        let nodes = nodes(mode, encapsulation);
        exchange(&nodes);
        for node in &nodes {
            let at = format!("{mode}, node {}", node.number);
            assert_eq!(node.drops(), [], "{at}");
            let (sent, received) = (
                node.count(Counter::PodToTunnel),
                node.count(Counter::TunnelToPod),
            );
            assert!(
                sent > 2 && received > 2,
                "{at}: {sent} sent, {received} received"
            );
        }
        // One next hop is known, the other is looked up.
        let looked_up = nodes.each_ref().map(|node| {
            let looked_up = node.count(Counter::NeighbourFallback);
            looked_up == node.count(Counter::PodToTunnel)
        });
        assert_eq!(looked_up, [false, true], "{mode}");
    }
}

#[test]
fn traffic_between_pods_of_two_nodes_is_carried_in_ip_in_ip() {
    assert_carried_by(Encapsulation::Ipip);
}

#[test]
fn traffic_between_pods_of_two_nodes_is_carried_in_udp() {
    assert_carried_by(Encapsulation::Udp);
}

/// Makes the wire carry packets of at most the MTU, which the nodes merge on arrival (GRO). A veth merges only
/// packets that the other end segmented.
fn segment_and_merge(nodes: &[OnePodNode; 2]) {
    for node in nodes {
        let set_up = || {
            segment_in_software("uplink")?;
            merge_on_arrival("uplink")
        };
        node.host.run(set_up).unwrap().unwrap();
    }
}

/// How many tunnel packets each node receives during an exchange.
fn received(nodes: &[OnePodNode; 2]) -> [u64; 2] {
    let count = || {
        nodes
            .each_ref()
            .map(|node| node.count(Counter::TunnelToPod))
    };
    let before = count();
    exchange(nodes);
    let after = count();
    [0, 1].map(|node| after[node] - before[node])
}

fn assert_merged(received: [u64; 2], mode: AttachMode) {
    assert!(
        received.iter().all(|received| *received < SEGMENTS / 2),
        "{mode}: {received:?} packets of {SEGMENTS} segments each way"
    );
}

#[test]
fn segments_in_ip_in_ip_are_merged_on_arrival() {
    for mode in modes() {
        let nodes = nodes(mode, Encapsulation::Ipip);
        segment_and_merge(&nodes);
        let received = received(&nodes);
        // A veth without XDP can merge since Linux 5.13.
        if at_least(5, 13) {
            assert_merged(received, mode);
        }
    }
}

#[test]
fn segments_in_udp_are_merged_on_arrival_if_there_is_a_fou_socket() {
    for mode in modes() {
        let nodes = nodes(mode, Encapsulation::Udp);
        segment_and_merge(&nodes);
        let one_by_one = received(&nodes);
        assert!(
            one_by_one.iter().all(|received| *received >= SEGMENTS),
            "{mode}: {one_by_one:?}"
        );
        for node in &nodes {
            let Some(mut fou) = Fou::open_in(&node.host).unwrap() else {
                let module = Path::new("/sys/module/fou");
                assert!(
                    !module.exists(),
                    "the kernel has FOU, but its netlink family is not found"
                );
                return;
            };
            let socket = SocketAddrV4::new(underlay(node.number), DEFAULT_UDP_PORT);
            fou.add(socket).unwrap();
            assert_eq!(fou.sockets().unwrap(), [socket]);
        }
        let received = received(&nodes);
        // Linux before 6.9 drops GRO-merged packets on FOU sockets that are bound to an address. Agents open
        // none on such kernels.
        if at_least(6, 9) {
            assert_merged(received, mode);
        }
    }
}

/// Sends a stream one way, long enough that the sender builds its largest packets.
fn stream(nodes: &[OnePodNode; 2], len: usize) {
    let [mut stream, mut receiver] = connection(nodes, SocketAddr::from((pod_address(2), 8)));
    thread::scope(|scope| {
        scope.spawn(|| {
            let chunk: Vec<u8> = (0..STREAM).map(|at| (at / 251) as u8).collect();
            for _ in 0..len / STREAM {
                stream.write_all(&chunk).expect("the stream is sent");
            }
        });
        let (mut chunk, mut first) = (vec![0; STREAM], vec![0; STREAM]);
        receiver.read_exact(&mut first).expect("the stream arrives");
        for _ in 1..len / STREAM {
            receiver.read_exact(&mut chunk).expect("the rest of it");
            assert!(chunk == first, "the stream was changed");
        }
    });
}

/// BIG TCP: packets above 65,535 bytes, whose length IPv4's total length cannot state.
fn assert_carried_in_big_packets(encapsulation: Encapsulation) {
    // `gso_ipv4_max_size` came with 6.3.
    if !at_least(6, 3) {
        return;
    }
    for mode in modes() {
        let nodes = nodes(mode, encapsulation);
        for node in &nodes {
            for (netns, name) in [(&node.pod, "eth0"), (&node.host, "uplink")] {
                let change = LinkChange {
                    gso_ipv4_max: Some(BIG_TCP),
                    ..LinkChange::default()
                };
                change_link(netns, name, &change);
                assert_eq!(link_of(netns, name).gso_ipv4_max, Some(BIG_TCP));
            }
        }
        let len = 64 * STREAM;
        stream(&nodes, len);
        let maps = Maps::open(&nodes[1].pins).unwrap();
        let Tally { packets, bytes } = maps.tally_counter(Counter::TunnelToPod).unwrap();
        assert_eq!(nodes[1].drops(), [], "{mode}");
        assert!(bytes >= len as u64, "{mode}: {bytes} bytes of {len}");
        // The mean packet is larger than IPv4's total length can state.
        assert!(
            bytes / packets > 65_535,
            "{mode}: {bytes} bytes in {packets} packets"
        );
    }
}

#[test]
fn packets_beyond_64_kib_are_carried_in_ip_in_ip() {
    assert_carried_in_big_packets(Encapsulation::Ipip);
}

#[test]
fn packets_beyond_64_kib_are_carried_in_udp() {
    assert_carried_in_big_packets(Encapsulation::Udp);
}
