//! What the eBPF programs and user space agree on: map names and sizes, keys, values, codes.
//!
//! Every multi-byte field that travels on a wire (addresses, ports) is in **network byte order**
//! and stands as bytes; counts, indexes and sizes are in host byte order. Structs are `repr(C)`
//! with explicit padding, and `zerocopy` proves that no byte is uninitialised.
//!
//! A change of any layout or map must raise [`ABI_VERSION`]: pins live in a folder of that number,
//! so an agent never adopts maps it would misread. The test `layout_is_the_recorded_one` enforces it.
#![no_std]

mod addr;
mod codes;
mod slot;
mod values;

pub mod maps;

pub use addr::{Addr, Mac, is_never_a_pod_address};
pub use codes::{Counter, DropReason, Encapsulation, Hook, PeerState, UnknownCode};
pub use slot::{SLOTS, Slot, pair_slot};
pub use values::{
    Config, DropEvent, EventBudget, Flow, FlowKey, NodeAddr, Peer, PeerInfo, PeerTraffic, Pod,
    Route, RouteKey, Tally,
};

/// Version of everything in this crate that lies in pinned maps.
pub const ABI_VERSION: u32 = 4;

/// UDP port of the `udp` encapsulation (foo-over-UDP) unless configured otherwise.
pub const DEFAULT_UDP_PORT: u16 = 5555;

/// Bytes that the `ipip` encapsulation adds: an IPv4 header (RFC 2003).
pub const IPIP_OVERHEAD: u16 = 20;

/// Bytes that the `udp` encapsulation adds: an IPv4 and a UDP header (RFC 768).
pub const UDP_OVERHEAD: u16 = 28;

/// IP protocol number of IPv4 in IPv4 (RFC 2003).
pub const PROTO_IPIP: u8 = 4;

/// The programs by the names that they have in the object and under the pins.
pub mod programs {
    /// TC ingress of the host side of each pod's veth.
    pub const FROM_POD: &str = "from_pod";
    /// TC egress of `ipip0`.
    pub const FROM_HOST: &str = "from_host";
    /// TC ingress of each uplink.
    pub const FROM_UPLINK: &str = "from_uplink";
    /// TC egress of the host side of each pod's veth.
    pub const TO_POD: &str = "to_pod";
    /// All of them.
    pub const ALL: [&str; 4] = [FROM_POD, FROM_HOST, FROM_UPLINK, TO_POD];
}
