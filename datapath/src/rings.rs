//! The ring buffers: drop events, and answers to probes.

use crate::{Error, Pins, open_map};
use aya::maps::{MapData, RingBuf};
use ipip_abi::{
    DropEvent,
    maps::{self, MapSpec},
    probe::ProbeReceipt,
};
use std::{
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};
use zerocopy::FromBytes;

/// The reader of the sampled drops.
pub type Events = Ring<DropEvent>;

/// The reader of the answers to this node's probes. The programs wake nobody for an answer, so a caller reads at its own times.
/// If it is too late, the latest answers are missing; the last one of each candidate is in `PROBE_STATES` all the same.
pub type Answers = Ring<ProbeReceipt>;

/// The reader of a ring buffer. There may be one reader at a time. The descriptor is readable while unread items exist.
pub struct Ring<T> {
    map: RingBuf<MapData>,
    items: PhantomData<T>,
}

/// What is in a ring buffer.
pub trait RingItem: FromBytes {
    /// The ring buffer.
    const MAP: &'static MapSpec;
}

impl RingItem for DropEvent {
    const MAP: &'static MapSpec = &maps::EVENTS;
}

impl RingItem for ProbeReceipt {
    const MAP: &'static MapSpec = &maps::ANSWERS;
}

impl<T: RingItem> Ring<T> {
    /// Opens the pinned ring buffer.
    ///
    /// # Errors
    /// The errors of [`open_map`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            map: open_map(pins, T::MAP)?,
            items: PhantomData,
        })
    }

    /// The next unread item, if there is one. Does not wait.
    #[expect(
        clippy::should_implement_trait,
        reason = "not an iterator: after None, more items may come"
    )]
    pub fn next(&mut self) -> Option<T> {
        loop {
            let bytes = self.map.next()?;
            if let Some(item) = ring_item(&bytes) {
                return Some(item);
            }
        }
    }
}

/// The item in these bytes of a ring buffer, which belongs to one ABI version: all items have the same length. `None` for fewer
/// bytes.
pub fn ring_item<T: RingItem>(bytes: &[u8]) -> Option<T> {
    let (item, _) = T::read_from_prefix(bytes).ok()?;
    Some(item)
}

impl<T> AsFd for Ring<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl<T> AsRawFd for Ring<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}
