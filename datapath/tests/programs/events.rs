//! The sampled drop events.

use crate::{fixture::*, packets::Ip};
use ipip_abi::{Counter, DropReason, Program};
use ipip_datapath::Events;

#[test]
fn an_event_shows_the_inner_tuple_the_peer_and_the_reason() {
    let node = Node::new();
    let mut events = Events::open(node.pins()).unwrap();
    node.from_b(&Ip::tcp(C_POD, 40_000, POD, 80));
    let event = events.next().expect("one event");
    assert_eq!(event.reason, DropReason::InnerSourceNotOfPeer as u8);
    assert_eq!(event.program, Program::FromUplink as u8);
    assert_eq!(event.peer, 1);
    assert_eq!((event.source, event.destination), (addr(C_POD), addr(POD)));
    assert_eq!(event.source_port, 40_000_u16.to_be_bytes());
    assert_eq!(event.destination_port, 80_u16.to_be_bytes());
    assert_eq!(
        (event.protocol, event.ifindex, event.len),
        (6, 1, 14 + 20 + 40)
    );
    assert!(event.at_ns > 0);
    assert!(events.next().is_none());
}

#[test]
fn an_event_about_the_outer_packet_shows_the_outer_addresses() {
    let node = Node::new();
    let mut events = Events::open(node.pins()).unwrap();
    let inner = Ip::tcp(B_POD, 1, POD, 80).bytes();
    node.run(Program::FromUplink, &ipip(STRANGER, OWN, &inner));
    let event = events.next().expect("one event");
    assert_eq!(
        (event.source, event.destination),
        (addr(STRANGER), addr(OWN))
    );
    assert_eq!((event.protocol, event.peer), (4, 0));
}

#[test]
fn every_drop_of_a_flood_is_counted_but_events_are_written_only_up_to_the_limit() {
    const LIMIT: u32 = 5;
    const FLOOD: u64 = 1000;
    let mut node = Node::new();
    node.configure(|config| config.events_per_second = LIMIT);
    let mut events = Events::open(node.pins()).unwrap();
    let spoofed = Ip::tcp("8.8.8.8", 1, B_POD, 80);
    for _ in 0..FLOOD {
        node.from_pod(&spoofed);
    }
    let mut written = 0;
    while events.next().is_some() {
        written += 1;
    }
    assert_eq!(
        node.maps
            .tally_drop(DropReason::PodSourceSpoofed)
            .unwrap()
            .packets,
        FLOOD
    );
    let suppressed = node
        .maps
        .tally_counter(Counter::EventSuppressed)
        .unwrap()
        .packets;
    assert_eq!(
        written + suppressed,
        FLOOD,
        "each drop is either written or counted as suppressed"
    );
    // Each second that began during the flood allows LIMIT events per CPU.
    assert!(
        written >= u64::from(LIMIT) && suppressed > 0,
        "{written} events were written"
    );
}

#[test]
fn no_events_are_written_if_the_limit_is_zero() {
    let mut node = Node::new();
    node.configure(|config| config.events_per_second = 0);
    let mut events = Events::open(node.pins()).unwrap();
    let outcome = node.from_pod(&Ip::tcp("8.8.8.8", 1, B_POD, 80));
    assert_eq!(outcome.verdict, DROP);
    assert!(outcome.moved.contains_key(Counter::EventSuppressed.name()));
    assert!(events.next().is_none());
}
