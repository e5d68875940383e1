//! A timer for a deadline that changes many times a second.
//!
//! The runtime keeps its own timers in a wheel: it wakes the process also when a timer passes to a finer part of the wheel, and
//! once more whenever a timer is set that is earlier than all others.

use crate::daemon::readable::readable;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use std::{
    future::pending,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

/// The shortest time: the kernel takes zero for no deadline (timerfd_settime(2)).
const AT_ONCE: Duration = Duration::from_nanos(1);

/// A timer of the kernel.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<Fd>,
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct Fd(TimerFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The kernel has no descriptor for it.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let fd = Fd(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?);
        Ok(Self {
            fd: readable(fd)?,
            deadline: None,
        })
    }

    /// Waits until the deadline; for ever if there is none. If it is dropped meanwhile, the next call goes on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn at(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let Some(at) = deadline else {
            return pending().await;
        };
        if self.deadline != deadline {
            let left = at.saturating_duration_since(Instant::now()).max(AT_ONCE);
            let once = Expiration::OneShot(TimeSpec::from_duration(left));
            self.fd.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
            self.deadline = deadline;
        }
        let take = |it: &Fd| Ok(it.0.wait()?);
        self.fd.async_io(Interest::READABLE, take).await?;
        self.deadline = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const STEP: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn it_ends_at_the_deadline_that_was_set_last() {
        let mut timer = Timer::new().unwrap();
        let start = Instant::now();
        let late = start + STEP * 1000;
        // Another event came first.
        assert!(timeout(STEP, timer.at(Some(late))).await.is_err());
        for deadline in [start + STEP * 3, start] {
            let ends = timeout(STEP * 100, timer.at(Some(deadline))).await;
            ends.unwrap().unwrap();
            assert!(Instant::now() >= deadline);
        }
        assert!(timeout(STEP, timer.at(Some(late))).await.is_err());
        assert!(timeout(STEP, timer.at(None)).await.is_err());
    }
}
