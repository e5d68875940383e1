//! The programs on the real kernel, one packet at a time (`BPF_PROG_TEST_RUN`): rejected packets with their drop
//! reasons, and the output for valid packets. Most tests assert exactly which counters changed. Needs root and a BPF
//! file system.

mod addressing;
mod answers;
mod arp;
mod batches;
mod cache_collisions;
mod ecn;
mod encapsulation;
mod events;
mod fixture;
mod flow;
mod gso;
mod instructions;
mod limited;
mod memory;
mod mss;
mod mtu_hints;
mod offloads;
mod outer_ttl;
mod outside;
mod packets;
mod pieces;
mod pod_side;
mod probes;
mod sent;
mod traffic;
mod uplink_side;
mod wire;
