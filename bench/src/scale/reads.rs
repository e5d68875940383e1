//! The memory that a packet's lookups read, without the program: tables of the maps' sizes in user space, read
//! at the indices at which the programs read. The time is that of a program that only waits for its
//! maps.

use super::{filled_node::Conversation, packets::underlay};
use anyhow::{Context, Result};
use ipip_abi::{
    Program, flow_pair_index,
    maps::{self, MapSpec},
};
use nix::sys::prctl::set_thp_disable;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// The reads of a packet whose location depends on the conversation.
const READS: usize = 6;
/// Bytes of a pointer in `struct bpf_array` of a per-CPU array; it points at this CPU's value.
const POINTER: usize = 8;

/// Tables of the sizes of a node's maps.
pub struct ReadTables {
    pods: ZeroTable,
    blocks: ZeroTable,
    nodes: ZeroTable,
    pairs: ZeroTable,
    peers: ZeroTable,
    pointers: ZeroTable,
    traffic: ZeroTable,
}

/// Memory that is all zero.
struct ZeroTable {
    words: Vec<u32>,
    bytes_each: usize,
}

impl ZeroTable {
    fn of(map: MapSpec) -> Self {
        Self::new(map.value_size as usize, map.max_entries)
    }

    fn new(bytes_each: usize, entries: u32) -> Self {
        let mut words = vec![0; bytes_each / size_of::<u32>() * entries as usize];
        // Written, so that each page has its own memory; otherwise all would map the kernel's zero page.
        words.iter_mut().for_each(|word| *word = black_box(0));
        Self { words, bytes_each }
    }

    fn at(&self, index: u32) -> *const u32 {
        &raw const self.words[index as usize * self.bytes_each / size_of::<u32>()]
    }
}

impl ReadTables {
    /// Allocates the tables in pages of 4 KiB, which the kernel's maps have too.
    pub fn new() -> Result<Self> {
        set_thp_disable(true).context("cannot turn transparent huge pages off")?;
        Ok(Self {
            pods: ZeroTable::of(maps::POD_CACHE),
            blocks: ZeroTable::of(maps::ROUTE_CACHE),
            nodes: ZeroTable::of(maps::NODE_CACHE),
            pairs: ZeroTable::of(maps::FLOW_PAIRS),
            peers: ZeroTable::of(maps::PEERS),
            pointers: ZeroTable::new(POINTER, maps::PEER_TRAFFIC.max_entries),
            traffic: ZeroTable::of(maps::PEER_TRAFFIC),
        })
    }

    /// Mean nanoseconds of all reads of a packet; each read depends on the one before. `between` runs before
    /// each packet, so that the reads find the CPU's caches as a packet finds them.
    pub fn sample(
        &self,
        program: Program,
        conversations: &[Conversation],
        between: impl Fn() -> Result<()>,
    ) -> Result<f64> {
        let reads: Vec<[*const u32; READS]> = conversations
            .iter()
            .map(|conversation| self.reads(program, conversation))
            .collect();
        let no_reads = vec![[]; conversations.len()];
        Ok(time(&reads, &between)? - time(&no_reads, &between)?)
    }

    /// The lookups of `from_pod` and of `from_uplink`.
    fn reads(&self, program: Program, conversation: &Conversation) -> [*const u32; READS] {
        let Conversation {
            own, peer, remote, ..
        } = *conversation;
        let last = if program == Program::FromPod {
            self.peers.at(peer)
        } else {
            self.nodes.at(underlay(peer).cache_index())
        };
        [
            self.pods.at(own.cache_index()),
            self.blocks.at(remote.block_cache_index()),
            self.pairs.at(flow_pair_index(own, remote)),
            self.pointers.at(peer),
            self.traffic.at(peer),
            last,
        ]
    }
}

/// Mean nanoseconds of the reads of one packet, including the clock's own time.
fn time<const N: usize>(
    packets: &[[*const u32; N]],
    between: impl Fn() -> Result<()>,
) -> Result<f64> {
    let (mut sum, mut time) = (0, Duration::ZERO);
    for reads in packets {
        between()?;
        let begin = Instant::now();
        for read in reads {
            // SAFETY: `read` points at a word in one of the tables, which outlive this call. All words are
            // zero, so `sum` is zero and the pointer stays the same. The processor cannot know this, so each
            // read waits for the one before.
            sum += unsafe { read.wrapping_add(sum as usize).read_volatile() };
        }
        time += begin.elapsed();
    }
    Ok(time.as_nanos() as f64 / packets.len() as f64)
}
