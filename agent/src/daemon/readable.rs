//! Descriptors that the runtime waits for.

use std::{io, os::fd::AsRawFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor for readability.
///
/// # Errors
/// The kernel refuses.
pub fn readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `AsyncFd` requires that `as_raw_fd` always returns the same open descriptor. All types of `inner`
    // (`HostEvents`, `RulesetEvents`, `DropEvents`, the descriptor of a `Timer`) own one descriptor, which they open once and
    // close when they are dropped.
    let registered = unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}
