//! The drop events.

use crate::{Error, Pins, maps::open};
use aya::maps::{MapData, RingBuf};
use ipip_abi::{DropEvent, maps};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use zerocopy::FromBytes;

/// The one reader of the ring of sampled drops. Its descriptor is readable while events wait.
pub struct Events(RingBuf<MapData>);

impl Events {
    /// Opens the pinned ring.
    ///
    /// # Errors
    /// As [`Maps::open`](crate::Maps::open).
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self(open(pins, &maps::EVENTS)?))
    }

    /// The next event that waits, if any.
    #[expect(
        clippy::should_implement_trait,
        reason = "None ends nothing: more may come"
    )]
    pub fn next(&mut self) -> Option<DropEvent> {
        loop {
            let item = self.0.next()?;
            // An item of another length is of no version that writes to this folder's ring.
            if let Ok((event, _)) = DropEvent::read_from_prefix(&item) {
                return Some(event);
            }
        }
    }
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
