//! The pinned datapath as user space sees it: load or adopt it, attach it, read and write its
//! maps, remove it.
//!
//! Programs and maps live in bpffs below a folder of the ABI's version, links beside it, so that they
//! outlive every process. [`load()`] is idempotent: it adopts pinned maps, keeps programs that
//! are unchanged, and replaces changed programs in place, without losing a packet. If another version's programs are
//! attached, they stay until [`take_over()`] replaces them: first the caller fills this version's maps.

mod attach;
mod batch;
mod cache;
mod error;
mod handover;
mod host;
mod interface;
mod jiffies;
mod kernel;
mod link;
mod load;
mod maps;
mod mode;
mod pins;
mod pods;
mod probe;
mod remove;
mod rings;
mod routes;
mod sent;
mod traffic;

pub use attach::{Attachment, Programs, Promotion};
pub use batch::first_values;
pub use cache::CachedMap;
pub use error::{Error, ErrorList, chain};
pub use handover::take_over;
pub use host::{
    BOOT_ID, DEFAULT_STATE_DIR, LEASES_DIR, LOCK_FILE, PATHS_SOCKET, POD_ALIAS_START, REPORT_FILE,
    TRAFFIC_FILE,
};
pub use interface::interface_name;
pub use jiffies::next_hops_until;
pub use kernel::{KernelVersion, kernel_version};
pub use load::{LoadOutcome, load, memory_is_limited};
pub use maps::{Maps, absent_is_fine, open_map, read_config};
pub use mode::AttachMode;
pub use pins::{DEFAULT_PIN_ROOT, Pins};
pub use pods::Pods;
pub use probe::{ProbeAnswer, ProbeError, ProbeTarget, Prober, SHORTEST_PROBE, SentProbe};
pub use remove::remove;
pub use rings::{Answers, Events, Ring, RingItem, ring_item};
pub use routes::Routes;
pub use sent::{Sent, SentReader};
