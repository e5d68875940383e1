//! The slow path: replies of a flow that came out of the host stack go back through it.

use crate::{
    fixture::*,
    packets::{ICMP, Ip, UDP},
};
use aya::maps::{Array, MapData};
use ipip_abi::{Addr, Counter, Flow, FlowKey, flow_pair_index, maps};
use ipip_datapath::open_map;

#[test]
fn the_reply_of_a_flow_that_the_host_sent_to_a_pod_goes_to_the_host() {
    let node = Node::new();
    node.to_pod(&Ip::tcp(B_POD, 40_000, POD, 80))
        .is(PASS, &[Counter::FlowRecorded]);
    node.to_pod(&Ip::tcp(B_POD, 40_000, POD, 80)).is(PASS, &[]);
    let reply = Ip::tcp(POD, 80, B_POD, 40_000);
    node.from_pod(&reply).is(PASS, &[Counter::FlowToStack]);
    node.from_pod(&reply).is(PASS, &[Counter::FlowToStack]);
    // Another flow of the same pods stays on the fast path.
    node.from_pod(&Ip::tcp(POD, 80, B_POD, 40_001))
        .is(REDIRECT, &[Counter::PodToTunnel]);
}

#[test]
fn the_reply_of_a_flow_that_a_local_pod_sent_through_the_host_goes_to_the_host() {
    let node = Node::new();
    let outcome = node.from_host(&Ip::tcp(POD, 40_000, B_POD, 80));
    outcome.is(REDIRECT, &[Counter::HostToTunnel, Counter::FlowRecorded]);
    let outcome = node.from_b(&Ip::tcp(B_POD, 80, POD, 40_000));
    outcome.is(REDIRECT, &[Counter::FlowToStack]);
    assert_eq!(outcome.frame[0..6], IPIP0_MAC.0);
}

#[test]
fn a_direct_connection_that_reuses_the_tuple_forgets_the_stale_flow() {
    let node = Node::new();
    node.from_host(&Ip::tcp(POD, 40_000, B_POD, 80));
    let again = Ip::tcp(POD, 40_000, B_POD, 80);
    node.from_pod(&again)
        .is(REDIRECT, &[Counter::PodToTunnel, Counter::FlowForgotten]);
    node.from_b(&Ip::tcp(B_POD, 80, POD, 40_000))
        .is(REDIRECT, &[Counter::TunnelToPod]);

    node.to_pod(&Ip::tcp(B_POD, 40_000, POD, 80));
    let again = Ip::tcp(B_POD, 40_000, POD, 80);
    node.from_b(&again)
        .is(REDIRECT, &[Counter::TunnelToPod, Counter::FlowForgotten]);
    node.from_pod(&Ip::tcp(POD, 80, B_POD, 40_000))
        .is(REDIRECT, &[Counter::PodToTunnel]);
}

#[test]
fn a_reply_on_the_slow_path_does_not_flip_the_flows_direction() {
    let node = Node::new();
    // A large datagram takes the stack, which fragments it. Its answer takes the stack too.
    node.from_host(&Ip::udp(POD, 5000, B_POD, 53, b""))
        .is(REDIRECT, &[Counter::HostToTunnel, Counter::FlowRecorded]);
    node.to_pod(&Ip::udp(B_POD, 53, POD, 5000, b""))
        .is(PASS, &[]);
    // The next datagram that needs no stack ends the slow path of both directions.
    node.from_pod(&Ip::udp(POD, 5000, B_POD, 53, b""))
        .is(REDIRECT, &[Counter::PodToTunnel, Counter::FlowForgotten]);
    node.from_b(&Ip::udp(B_POD, 53, POD, 5000, b""))
        .is(REDIRECT, &[Counter::TunnelToPod]);
}

#[test]
fn a_flow_between_two_pods_of_the_node_takes_the_slow_path_both_ways_too() {
    let node = Node::new();
    node.to_pod(&Ip::udp(POD_2, 5000, POD, 53, b""))
        .is(PASS, &[Counter::FlowRecorded]);
    node.from_pod(&Ip::udp(POD, 53, POD_2, 5000, b""))
        .is(PASS, &[Counter::FlowToStack]);
}

#[test]
fn flows_whose_reply_takes_the_host_anyway_are_not_recorded() {
    let node = Node::new();
    for source in ["8.8.8.8", "10.96.0.1", OWN, NO_POD] {
        node.to_pod(&Ip::tcp(source, 40_000, POD, 80)).is(PASS, &[]);
    }
    let outcome = node.from_host(&Ip::tcp(OWN, 40_000, B_POD, 80));
    outcome.is(REDIRECT, &[Counter::HostToTunnel]);
}

#[test]
fn an_icmp_error_follows_the_flow_that_it_quotes() {
    let node = Node::new();
    node.from_host(&Ip::tcp(POD, 40_000, B_POD, 80));
    let error = |quoted: Ip| {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
        message.extend(&quoted.bytes()[..28]);
        Ip::new(B_POD, POD, ICMP).payload(message)
    };
    let about_the_flow = error(Ip::tcp(POD, 40_000, B_POD, 80));
    node.from_b(&about_the_flow)
        .is(REDIRECT, &[Counter::FlowToStack]);
    let other = error(Ip::tcp(POD, 40_001, B_POD, 80));
    node.from_b(&other).is(REDIRECT, &[Counter::TunnelToPod]);
}

/// Any pod and any peer can send an error that quotes the flow of another pod.
#[test]
fn an_icmp_error_neither_records_nor_forgets_a_flow() {
    let node = Node::new();
    let error = |source, destination, quoted: Ip| {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
        message.extend(&quoted.bytes()[..28]);
        Ip::new(source, destination, ICMP).payload(message)
    };
    let reply = Ip::tcp(B_POD, 80, POD_2, 40_000);
    node.from_host(&error(POD, B_POD, Ip::tcp(B_POD, 80, POD_2, 40_000)))
        .is(REDIRECT, &[Counter::HostToTunnel]);
    node.from_b(&reply).is(REDIRECT, &[Counter::TunnelToPod]);

    node.from_host(&Ip::tcp(POD_2, 40_000, B_POD, 80))
        .is(REDIRECT, &[Counter::HostToTunnel, Counter::FlowRecorded]);
    node.from_pod(&error(POD, B_POD, Ip::tcp(B_POD, 80, POD_2, 40_000)))
        .is(REDIRECT, &[Counter::PodToTunnel]);
    node.from_b(&reply).is(REDIRECT, &[Counter::FlowToStack]);
}

#[test]
fn a_flow_that_was_idle_for_longer_than_conntrack_remembers_is_ignored() {
    let node = Node::new();
    node.to_pod(&Ip::tcp(B_POD, 40_000, POD, 80))
        .is(PASS, &[Counter::FlowRecorded]);
    let mut pairs: Array<MapData, u32> = open_map(node.pins(), &maps::FLOW_PAIRS).unwrap();
    let index = flow_pair_index(addr(POD), addr(B_POD));
    let now = pairs.get(&index, 0).unwrap();
    assert_ne!(now, 0, "the pair is marked");
    let reply = Ip::tcp(POD, 80, B_POD, 40_000);
    pairs.set(index, now.wrapping_sub(1), 0).unwrap();
    node.from_pod(&reply).is(PASS, &[Counter::FlowToStack]);
    pairs.set(index, now.wrapping_sub(2), 0).unwrap();
    node.from_pod(&reply).is(REDIRECT, &[Counter::PodToTunnel]);
    // The flow's next packet out of the stack renews the mark.
    node.to_pod(&Ip::tcp(B_POD, 40_000, POD, 80)).is(PASS, &[]);
    node.from_pod(&reply).is(PASS, &[Counter::FlowToStack]);
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A segment of a connection of B's pod to the pod through the host stack: from the server or from the client.
fn segment(from_server: bool, client_port: u16, flags: u8, data: &[u8]) -> Ip {
    match from_server {
        true => Ip::tcp(POD, 80, B_POD, client_port),
        false => Ip::tcp(B_POD, client_port, POD, 80),
    }
    .flags(flags)
    .data(data)
}

/// Opens a connection; the server has sent no data yet.
fn open(node: &Node, client_port: u16) {
    let segment = |from_server, flags| segment(from_server, client_port, flags, b"");
    node.to_pod(&segment(false, SYN))
        .is(PASS, &[Counter::FlowRecorded]);
    node.from_pod(&segment(true, SYN | ACK))
        .is(PASS, &[Counter::FlowToStack]);
    node.to_pod(&segment(false, ACK)).is(PASS, &[]);
}

fn connections(node: &Node) -> usize {
    node.maps.connections.keys().count()
}

#[test]
fn an_idle_connection_whose_server_sends_next_survives_a_million_other_flows() {
    let mut node = Node::new();
    open(&node, 40_000);
    // It acknowledges the client's request, which a long poll answers much later.
    node.from_pod(&segment(true, 40_000, ACK, b""))
        .is(PASS, &[Counter::FlowToStack]);
    for index in 0..1_000_000_u32 {
        let [_, a, b, c] = index.to_be_bytes();
        let other = Addr([11, a, b, c]);
        let (key, _) = FlowKey::canonical(other, [0, 1], addr(POD), [0, 53], UDP);
        node.maps.flows.insert(key, Flow::new(true), 0).unwrap();
    }
    node.from_pod(&segment(true, 40_000, ACK, b"news"))
        .is(PASS, &[Counter::FlowToStack]);
}

#[test]
fn a_connection_that_is_not_answered_or_has_ended_displaces_no_idle_one() {
    let node = Node::new();
    open(&node, 40_000);
    assert_eq!(connections(&node), 0, "only the handshake was answered");
    let from_server = |port, flags, data: &[u8]| {
        node.from_pod(&segment(true, port, flags, data))
            .is(PASS, &[Counter::FlowToStack]);
    };
    from_server(40_000, ACK, b"greeting");
    assert_eq!(connections(&node), 1);
    // The server closes first, then acknowledges the client's FIN.
    from_server(40_000, FIN | ACK, b"");
    assert_eq!(connections(&node), 0);
    node.to_pod(&segment(false, 40_000, FIN | ACK, b""))
        .is(PASS, &[]);
    from_server(40_000, ACK, b"");
    assert_eq!(connections(&node), 0);
    // The client closes first: the server may send on.
    open(&node, 40_001);
    from_server(40_001, ACK, b"");
    node.to_pod(&segment(false, 40_001, FIN | ACK, b""))
        .is(PASS, &[]);
    from_server(40_001, ACK, b"rest");
    assert_eq!(connections(&node), 1);
    from_server(40_001, FIN | ACK, b"");
    node.to_pod(&segment(false, 40_001, ACK, b"")).is(PASS, &[]);
    assert_eq!(connections(&node), 0);
    open(&node, 40_002);
    from_server(40_002, ACK, b"");
    from_server(40_002, RST, b"");
    assert_eq!(connections(&node), 0);
}

#[test]
fn a_direct_connection_that_reuses_the_tuple_forgets_the_open_connection() {
    let node = Node::new();
    open(&node, 40_000);
    node.from_pod(&segment(true, 40_000, ACK, b"data"))
        .is(PASS, &[Counter::FlowToStack]);
    node.from_b(&segment(false, 40_000, SYN, b""))
        .is(REDIRECT, &[Counter::TunnelToPod, Counter::FlowForgotten]);
    assert_eq!(connections(&node), 0);
    node.from_pod(&segment(true, 40_000, SYN | ACK, b""))
        .is(REDIRECT, &[Counter::PodToTunnel]);
}
