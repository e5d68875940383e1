//! The pinned datapath as user space sees it: load or adopt it, attach it, read and write its
//! maps, remove it.
//!
//! Programs, maps and links live in bpffs below a folder of the ABI's version, so that they
//! outlive every process. [`load`] is idempotent: maps that are there are adopted, programs that
//! are the same stay, programs that differ are replaced in place without a packet lost.

mod attach;
mod error;
mod events;
mod link;
mod load;
mod maps;
mod mode;
mod pins;
mod routes;
mod slots;

pub use attach::{Attachment, Programs, Promotion};
pub use error::Error;
pub use events::Events;
pub use load::{LoadOutcome, load, remove};
pub use maps::{Maps, absent_is_fine, config, open, pods};
pub use mode::AttachMode;
pub use pins::{DEFAULT_PIN_ROOT, Pins};
pub use routes::Routes;
pub use slots::Slotted;
