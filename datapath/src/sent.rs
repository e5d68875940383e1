//! The peers to which packets were sent: memory that the programs write and user space reads without system calls. An agent looks
//! twice a second, and to read the counters of thousands of peers would cost more than all that it does otherwise.

use crate::{Error, Pins, maps::failed, open_map};
use aya::{
    maps::{Array, IterableMap, MapData},
    sys::SyscallError,
};
use ipip_abi::{SENT_LARGE_UNSEEN, SENT_UNSEEN, maps};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    ffi::c_void,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Who looks which peers packets were sent to. Each sees all of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SentReader {
    /// Probes the paths that are in use.
    Paths = 1 << 0,
    /// Keeps the neighbour entries of next hops.
    NextHops = 1 << 1,
    /// Probes those paths with large packets that are used for such: sees only to whom these were sent.
    LargePaths = 1 << 16,
}

/// The map `SENT`.
pub struct Sent {
    memory: NonNull<c_void>,
}

/// The kernel rounds the size of an array's elements up to eight bytes.
const STRIDE: usize = size_of::<AtomicU64>();
const ELEMENTS: usize = maps::SENT.max_entries as usize;
const LEN: NonZeroUsize = NonZeroUsize::new(ELEMENTS * STRIDE).expect("not empty");

// SAFETY: all access to the memory is atomic.
unsafe impl Send for Sent {}
// SAFETY: threads that share it access the memory only atomically.
unsafe impl Sync for Sent {}

impl Sent {
    pub(crate) fn open(pins: &Pins) -> Result<Self, Error> {
        let map: Array<MapData, u32> = open_map(pins, &maps::SENT)?;
        let (read_write, flags) = (
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
        );
        // SAFETY: the kernel chooses the address, so nothing else is replaced.
        let memory = unsafe { mmap(None, LEN, read_write, flags, map.map().fd().as_fd(), 0) };
        let memory = memory.map_err(|errno| {
            let (call, io_error) = ("mmap", errno.into());
            failed("open", &maps::SENT)(SyscallError { call, io_error }.into())
        })?;
        Ok(Self { memory })
    }

    /// The indexes of the peers to which packets were sent since this reader looked last, or ever if it has not looked yet.
    pub fn take(&self, reader: SentReader) -> Vec<u16> {
        let bit = reader as u32;
        let was_sent = |index: &u16| {
            let sent = self.element(*index);
            // A look before each write, because a write takes the cache line from the programs.
            sent.load(Ordering::Relaxed) & bit != 0
                && sent.fetch_and(!bit, Ordering::Relaxed) & bit != 0
        };
        (0..ELEMENTS as u16).filter(was_sent).collect()
    }

    fn element(&self, index: u16) -> &AtomicU32 {
        let offset = usize::from(index) * STRIDE;
        // SAFETY: the memory has `ELEMENTS` elements and lives as long as `self`; every index that `take` passes is below that,
        // and each element begins with an aligned word that is only accessed atomically here.
        unsafe { self.memory.byte_add(offset).cast::<AtomicU32>().as_ref() }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this length, and no reference to it outlives `self`.
        let _ = unsafe { munmap(self.memory, LEN.get()) };
    }
}

const _: () = assert!(SENT_UNSEEN & SentReader::Paths as u32 != 0);
const _: () = assert!(SENT_UNSEEN & SentReader::NextHops as u32 != 0);
const _: () = assert!(SENT_LARGE_UNSEEN & SentReader::LargePaths as u32 != 0);
