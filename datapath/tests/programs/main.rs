//! The programs on the real kernel, one packet at a time (`BPF_PROG_TEST_RUN`): every row of the threat table, and the
//! output for valid packets. Each test asserts exactly which counters moved. Needs root and a BPF file system.

mod addressing;
mod cache_collisions;
mod ecn;
mod encapsulation;
mod events;
mod fixture;
mod flow;
mod instructions;
mod limited;
mod memory;
mod outer_ttl;
mod packets;
mod pod_side;
mod uplink_side;
mod wire;
