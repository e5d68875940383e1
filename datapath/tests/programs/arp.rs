//! ARP from pods: requests for the gateway are answered, and the host sees only replies to its own requests.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{Counter, DropReason, Mac, POD_GATEWAY_MAC, Program};

/// A guest behind the pod.
const GUEST_MAC: Mac = Mac([2, 0xdd, 0, 0, 0, 9]);
const BROADCAST: Mac = Mac([0xff; 6]);
const NO_MAC: Mac = Mac([0; 6]);
const GATEWAY: &str = "169.254.1.1";
const NOBODY: &str = "0.0.0.0";

const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// An ARP packet (RFC 826) in a frame from the sender to `to`.
fn arp(to: Mac, operation: u8, sender: (Mac, &str), target: (Mac, &str)) -> Vec<u8> {
    let mut frame = [to.0, sender.0.0].concat();
    frame.extend([0x08, 0x06]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    for (mac, address) in [sender, target] {
        frame.extend(mac.0);
        frame.extend(addr(address).0);
    }
    frame
}

fn request(sender: (Mac, &str), target: &str) -> Vec<u8> {
    arp(BROADCAST, REQUEST, sender, (NO_MAC, target))
}

fn run(frame: &[u8]) -> Outcome {
    Node::new().run_frame(Program::FromPod, frame)
}

#[test]
fn a_request_of_the_pod_for_its_gateway_is_answered_with_the_mac_of_the_host_side() {
    let outcome = run(&request((POD_MAC, POD), GATEWAY));
    outcome.is(REDIRECT, &[Counter::ArpAnswered]);
    let reply = arp(POD_MAC, REPLY, (POD_HOST_MAC, GATEWAY), (POD_MAC, POD));
    assert_eq!(outcome.frame, reply);
}

#[test]
fn a_unicast_request_for_the_gateway_in_a_padded_frame_is_answered() {
    let mut frame = arp(POD_HOST_MAC, REQUEST, (POD_MAC, POD), (NO_MAC, GATEWAY));
    frame.resize(60, 0);
    let outcome = run(&frame);
    outcome.is(REDIRECT, &[Counter::ArpAnswered]);
    let mut reply = arp(POD_MAC, REPLY, (POD_HOST_MAC, GATEWAY), (POD_MAC, POD));
    reply.resize(60, 0);
    assert_eq!(outcome.frame, reply);
}

#[test]
fn a_guest_with_another_mac_gets_the_answer_and_later_packets_at_its_own_mac() {
    let node = Node::new();
    let asked = request((GUEST_MAC, POD), GATEWAY);
    let outcome = node.run_frame(Program::FromPod, &asked);
    outcome.is(REDIRECT, &[Counter::ArpAnswered, Counter::PodMacLearned]);
    let reply = arp(GUEST_MAC, REPLY, (POD_HOST_MAC, GATEWAY), (GUEST_MAC, POD));
    assert_eq!(outcome.frame, reply);
    let to_pod = Ip::tcp(B_POD, 40_000, POD, 80);
    assert_eq!(node.from_b(&to_pod).frame[0..6], GUEST_MAC.0);
    let entry = node.maps.pods.get(&addr(POD), 0).unwrap();
    assert_eq!((entry.mac, entry.host_mac), (GUEST_MAC, POD_HOST_MAC));
    // The second request states nothing new.
    let outcome = node.run_frame(Program::FromPod, &asked);
    outcome.is(REDIRECT, &[Counter::ArpAnswered]);
}

#[test]
fn a_mac_is_learned_only_for_the_pods_own_address() {
    let node = Node::new();
    for sender in [(GUEST_MAC, POD_2), (GUEST_MAC, NOBODY)] {
        let outcome = node.run_frame(Program::FromPod, &request(sender, GATEWAY));
        outcome.is(REDIRECT, &[Counter::ArpAnswered]);
    }
    for pod in [POD, POD_2] {
        assert_eq!(node.maps.pods.get(&addr(pod), 0).unwrap().mac, POD_MAC);
    }
}

/// With such a MAC in its entry the pod would get no packet.
#[test]
fn a_sender_mac_that_is_no_stations_is_refused() {
    let node = Node::new();
    let group = Mac([3, 0xdd, 0, 0, 0, 9]);
    for mac in [NO_MAC, BROADCAST, group] {
        let reply = arp(POD_HOST_MAC, REPLY, (mac, POD), (POD_HOST_MAC, OWN));
        for frame in [
            request((mac, POD), GATEWAY),
            request((mac, POD), POD),
            request((mac, NOBODY), GATEWAY),
            reply,
        ] {
            let outcome = node.run_frame(Program::FromPod, &frame);
            outcome.is_dropped(DropReason::PodArp);
        }
    }
    assert_eq!(node.maps.pods.get(&addr(POD), 0).unwrap().mac, POD_MAC);
}

/// The address moves to another guest.
#[test]
fn a_gratuitous_arp_states_a_new_mac() {
    let outcome = run(&request((GUEST_MAC, POD), POD));
    outcome.is(DROP, &[Counter::ArpIgnored, Counter::PodMacLearned]);
}

#[test]
fn a_guest_without_an_address_of_the_pod_gets_the_gateways_mac() {
    // No address yet, another address, the address of a pod behind another interface.
    for sender in [NOBODY, "192.168.1.5", POD_2] {
        let outcome = run(&request((GUEST_MAC, sender), GATEWAY));
        outcome.is(REDIRECT, &[Counter::ArpAnswered]);
        let gateway = (POD_GATEWAY_MAC, GATEWAY);
        let reply = arp(GUEST_MAC, REPLY, gateway, (GUEST_MAC, sender));
        assert_eq!(outcome.frame, reply, "{sender}");
    }
}

#[test]
fn probes_for_duplicate_addresses_and_gratuitous_arp_are_dropped_silently() {
    for target in [POD, "10.0.0.11", "192.168.1.5"] {
        run(&request((POD_MAC, NOBODY), target)).is(DROP, &[Counter::ArpIgnored]);
    }
    for own in [POD, "10.0.0.11", GATEWAY] {
        run(&request((POD_MAC, own), own)).is(DROP, &[Counter::ArpIgnored]);
        let announced = arp(BROADCAST, REPLY, (POD_MAC, own), (BROADCAST, own));
        run(&announced).is(DROP, &[Counter::ArpIgnored]);
    }
}

#[test]
fn the_pod_answers_a_request_of_the_host_for_its_own_address_only() {
    let reply = |sender| arp(POD_HOST_MAC, REPLY, (POD_MAC, sender), (POD_HOST_MAC, OWN));
    let outcome = run(&reply(POD));
    outcome.is(PASS, &[]);
    assert_eq!(outcome.frame, reply(POD));
    // Another pod of this node, another node, this node's gateway, the pod's gateway, nobody.
    for forged in [POD_2, D, "10.0.0.1", GATEWAY, NOBODY] {
        run(&reply(forged)).is_dropped(DropReason::PodArp);
    }
}

/// The host would make a neighbour entry for each sender.
#[test]
fn requests_for_other_addresses_are_dropped() {
    for (sender, target) in [
        (POD, OWN),
        (POD, POD_2),
        (POD, "8.8.8.8"),
        (POD_2, POD),
        ("198.19.0.1", OWN),
    ] {
        run(&request((POD_MAC, sender), target)).is_dropped(DropReason::PodArp);
    }
}

#[test]
fn malformed_arp_is_dropped() {
    let valid = request((POD_MAC, POD), GATEWAY);
    run(&valid[..valid.len() - 1]).is_dropped(DropReason::Truncated);
    // Hardware type, protocol, the lengths of both addresses, and the operation (3 is RARP's).
    for (at, value) in [(15, 6), (17, 1), (18, 8), (19, 16), (21, 3)] {
        let mut wrong = valid.clone();
        wrong[at] = value;
        run(&wrong).is_dropped(DropReason::PodArp);
    }
}
