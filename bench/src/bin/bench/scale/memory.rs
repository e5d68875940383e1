//! The memory that a packet's lookups touch, read by itself: what is left of a program when it does nothing
//! but wait for its maps. Tables of the maps' sizes, read at the places where the programs read.

use super::{node::Conversation, packets::underlay};
use anyhow::{Context, Result};
use ipip_abi::{
    maps::{self, MapSpec},
    pair_slot, programs,
};
use nix::sys::prctl::set_thp_disable;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// What a packet reads that others do not: with one conversation after another these differ.
const READS: usize = 6;
/// Bytes of a pointer in `struct bpf_array` of a per-CPU array: where this CPU's value lies.
const POINTER: usize = 8;

/// Tables like the maps of one node.
pub struct Memory {
    pods: Table,
    blocks: Table,
    nodes: Table,
    pairs: Table,
    peers: Table,
    pointers: Table,
    traffic: Table,
}

/// Memory that holds nothing but zeros.
struct Table {
    words: Vec<u32>,
    bytes_each: usize,
}

impl Table {
    fn of(map: MapSpec) -> Self {
        Self::new(map.value_size as usize, map.max_entries)
    }

    fn new(bytes_each: usize, entries: u32) -> Self {
        let mut words = vec![0; bytes_each / size_of::<u32>() * entries as usize];
        // Else every page would be the one page of zeros.
        words.iter_mut().for_each(|word| *word = black_box(0));
        Self { words, bytes_each }
    }

    fn place(&self, index: u32) -> *const u32 {
        &raw const self.words[index as usize * self.bytes_each / size_of::<u32>()]
    }
}

impl Memory {
    /// In pages of 4 KiB, as the kernel's maps.
    pub fn new() -> Result<Self> {
        set_thp_disable(true).context("cannot have pages of 4 KiB")?;
        Ok(Self {
            pods: Table::of(maps::POD_SLOTS),
            blocks: Table::of(maps::ROUTE_BLOCKS),
            nodes: Table::of(maps::NODE_SLOTS),
            pairs: Table::of(maps::FLOW_PAIRS),
            peers: Table::of(maps::PEERS),
            pointers: Table::new(POINTER, maps::PEER_TRAFFIC.max_entries),
            traffic: Table::of(maps::PEER_TRAFFIC),
        })
    }

    /// Mean ns of all reads of a packet, each of which waits for the one before. `between` runs before each
    /// packet, as the rest of a packet's way does, and leaves the caches as that leaves them.
    pub fn sample(
        &self,
        program: &str,
        conversations: &[Conversation],
        between: impl Fn() -> Result<()>,
    ) -> Result<f64> {
        let all: Vec<[*const u32; READS]> = conversations
            .iter()
            .map(|it| self.places(program, it))
            .collect();
        let nowhere = vec![[]; conversations.len()];
        Ok(time(&all, &between)? - time(&nowhere, &between)?)
    }

    /// As `from_pod` and `from_uplink` look up.
    fn places(&self, program: &str, who: &Conversation) -> [*const u32; READS] {
        let last = match program == programs::FROM_POD {
            true => self.peers.place(who.peer),
            false => self.nodes.place(underlay(who.peer).slot()),
        };
        [
            self.pods.place(who.own.slot()),
            self.blocks.place(who.remote.block_slot()),
            self.pairs.place(pair_slot(who.own, who.remote)),
            self.pointers.place(who.peer),
            self.traffic.place(who.peer),
            last,
        ]
    }
}

/// Mean ns of the reads of one packet, and of the clock.
fn time<const N: usize>(
    packets: &[[*const u32; N]],
    between: impl Fn() -> Result<()>,
) -> Result<f64> {
    let (mut sum, mut time) = (0, Duration::ZERO);
    for places in packets {
        between()?;
        let begin = Instant::now();
        for place in places {
            // SAFETY: a place in one of the tables, which are all zero: the sum moves no place, but the
            // processor does not know.
            sum += unsafe { place.wrapping_add(sum as usize).read_volatile() };
        }
        time += begin.elapsed();
    }
    Ok(time.as_nanos() as f64 / packets.len() as f64)
}
