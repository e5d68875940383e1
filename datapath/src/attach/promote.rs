//! Moves a program from clsact, which lets a pod start without waiting, to TCX, which costs less per packet.
//!
//! Between the two steps the program is attached in both ways, and TCX runs first. That changes no verdict: a packet
//! that the first run redirects or drops does not reach the filter, and a packet that it passes gets the same
//! verdict from the filter.
//!
//! The clsact qdisc stays, because other programs may have filters on it by now. Without filters it costs nothing:
//! the kernel finds no `miniq` and returns (`tc_run` in net/core/dev.c).

use super::{Attachment, Programs};
use crate::{AttachMode, Error};
use nix::net::if_::if_nametoindex;

/// The outcome of a promotion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promotion {
    /// Its programs are attached by TCX alone.
    Done,
    /// The interface no longer exists, and its pins are removed.
    Gone,
    /// A pod is being added, or programs are being replaced: try again later.
    Busy,
}

impl Programs {
    /// The interfaces that have a program on clsact and can be promoted to TCX, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn promotable(&self) -> Result<Vec<String>, Error> {
        if self.mode != AttachMode::Tcx {
            return Ok(Vec::new());
        }
        let mut interfaces: Vec<String> = self.filters()?.into_iter().map(|it| it.ifname).collect();
        interfaces.dedup();
        interfaces.retain(|ifname| if_nametoindex(ifname.as_str()).is_ok());
        Ok(interfaces)
    }

    /// Attaches all clsact programs of the interface by TCX, and then removes the filters. No packet
    /// bypasses the programs, even if this process is killed halfway; the next call completes the work.
    ///
    /// Takes about 50 ms for RCU grace periods. It only try-locks: if another process holds the lock of the pins, it
    /// returns [`Promotion::Busy`].
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason; then the filters stay.
    pub fn promote(&mut self, ifname: &str) -> Result<Promotion, Error> {
        // Without the lock, ADD could meanwhile create an interface of the same name, and its filters would be removed
        // here.
        let Some(_lock) = self.pins.try_lock()? else {
            return Ok(Promotion::Busy);
        };
        if self.pins.other_current()?.is_some() {
            return Ok(Promotion::Busy);
        }
        let index = if_nametoindex(ifname);
        // DEL takes no lock: it deletes the interface first and then its pins. If the interface still exists after
        // the link was pinned, DEL will remove that pin too. Otherwise the promoter removes it.
        let is_there = || index.is_ok() && if_nametoindex(ifname) == index;
        let mut filters = self.filters()?;
        filters.retain(|filter| filter.ifname == ifname);
        for filter in filters {
            let attached = self.attach_tcx(ifname, filter.program);
            let moved = attached.and_then(|()| self.detach_one(&filter));
            if !is_there() {
                return self.pins.forget(ifname).map(|()| Promotion::Gone);
            }
            moved?;
        }
        Ok(Promotion::Done)
    }

    /// The programs that are attached by clsact, by their marks.
    fn filters(&self) -> Result<Vec<Attachment>, Error> {
        let mut pins = self.pins.link_pins()?;
        pins.retain(|pin| pin.mode == AttachMode::Clsact);
        let filters = pins.into_iter().map(|pin| Attachment {
            ifname: pin.ifname,
            program: pin.program,
            mode: pin.mode,
            defunct: false,
        });
        Ok(filters.collect())
    }
}
