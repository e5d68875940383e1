//! The drop events.

use crate::{Error, Pins, open_map};
use aya::maps::{MapData, RingBuf};
use ipip_abi::{DropEvent, maps};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use zerocopy::FromBytes;

/// The reader of the ring buffer of sampled drops. There may be one reader at a time. The descriptor is readable
/// while unread events exist.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the pinned ring buffer.
    ///
    /// # Errors
    /// The errors of [`open_map`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self(open_map(pins, &maps::EVENTS)?))
    }

    /// The next unread event, if there is one. Does not wait.
    #[expect(
        clippy::should_implement_trait,
        reason = "not an iterator: after None, more events may come"
    )]
    pub fn next(&mut self) -> Option<DropEvent> {
        loop {
            let item = self.0.next()?;
            if let Some(event) = drop_event(&item) {
                return Some(event);
            }
        }
    }
}

/// The event in an item of the ring buffer, which belongs to one ABI version: all items have the length of an event.
/// `None` for a shorter one.
pub fn drop_event(item: &[u8]) -> Option<DropEvent> {
    let (event, _) = DropEvent::read_from_prefix(item).ok()?;
    Some(event)
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
