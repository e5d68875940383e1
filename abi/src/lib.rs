//! The interface between the eBPF programs and user space: map names and sizes, keys, values, codes, and the
//! constants of outer headers.
//!
//! Every multi-byte field that travels on a wire (addresses, ports) is an array of bytes in **network byte
//! order**; counts, indexes and sizes are in host byte order. Structs are `repr(C)`
//! with explicit padding, and `zerocopy` proves that no byte is uninitialised.
//!
//! A change of any layout or map must raise [`ABI_VERSION`]: pins live in a folder of that number,
//! so an agent never adopts maps that it would misread. The test `layout_is_the_recorded_one` enforces it. What versions
//! share, and never change, is in [`handover`].
#![no_std]

mod addr;
mod cache;
mod codes;
mod program;
mod traffic;
mod values;

pub mod handover;
pub mod maps;
pub mod probe;
pub mod wire;

pub use addr::{
    Addr, Mac, NEVER_POD_RANGES, POD_GATEWAY, POD_GATEWAY_MAC, is_never_a_pod_address,
    overlaps_never_pod_range,
};
pub use cache::{CACHE_LEN, Cached, flow_pair_index};
pub use codes::{Candidate, Counter, DropReason, Encapsulation, PeerState, UnknownCode};
pub use program::{Direction, Program};
pub use traffic::{LARGE, PeerBytes, PeerTraffic, SENT_LARGE_UNSEEN, SENT_UNSEEN};
pub use values::{
    Config, DropEvent, EventBudget, Flow, FlowKey, MtuHint, NodeAddr, Peer, PeerInfo, Pod, Route,
    RouteKey, Tally,
};
pub use wire::DEFAULT_UDP_PORT;

/// Version of everything in this crate that lies in pinned maps, apart from [`handover`].
#[cfg(not(feature = "next-abi"))]
pub const ABI_VERSION: u32 = 9;
/// In the build that tests use as the next version: its number.
#[cfg(feature = "next-abi")]
pub const ABI_VERSION: u32 = 1009;
