//! From clsact, by which a pod starts without waiting, to TCX, by which its packets are faster.
//!
//! Between the two steps both kinds run the program, TCX first. That changes nothing: a packet that
//! was redirected or dropped does not come to the filter, and of one that passed it says the same.
//!
//! The clsact qdisc stays. Others may have filters on it by now, and without filters it costs
//! nothing: the kernel then finds no `miniq` and asks no further (`tc_run` in net/core/dev.c).

use super::{Attachment, Programs};
use crate::{AttachMode, Error, Pins, pins::CLSACT_MARK};
use nix::net::if_::if_nametoindex;

/// What became of an interface that was to be promoted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promotion {
    /// It has its programs by TCX alone.
    Done,
    /// It is gone, and so are its pins.
    Gone,
    /// A pod is being added, or programs are being replaced: ask again later.
    Busy,
}

impl Programs {
    /// The interfaces that have a program by clsact and could have it by TCX, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn promotable(&self) -> Result<Vec<String>, Error> {
        if self.mode != AttachMode::Tcx {
            return Ok(Vec::new());
        }
        let mut interfaces: Vec<String> = self.marks()?.into_iter().map(|it| it.ifname).collect();
        interfaces.dedup();
        interfaces.retain(|ifname| if_nametoindex(ifname.as_str()).is_ok());
        Ok(interfaces)
    }

    /// Attaches by TCX whatever is on the interface by clsact, and then takes the filters off. No
    /// packet goes without a program, whoever is killed on the way; asked again, it goes on.
    ///
    /// Waits some 50 ms for the kernel, and never for anybody else.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason; then the filters stay.
    pub fn promote(&mut self, ifname: &str) -> Result<Promotion, Error> {
        // Else a pod of the same name could come in the middle, and lose its filters to us.
        let Some(_lock) = self.pins.try_lock()? else {
            return Ok(Promotion::Busy);
        };
        let index = if_nametoindex(ifname);
        // Whoever deletes a pod removes the pins after the interface, and waits for nobody. So if
        // the interface is still there after we have pinned, ours are removed too, and else by us.
        let is_there = || index.is_ok() && if_nametoindex(ifname) == index;
        let mut marks = self.marks()?;
        marks.retain(|mark| mark.ifname == ifname);
        for mark in marks {
            let attached = self.attach_tcx(ifname, mark.program);
            let moved = attached.and_then(|()| self.detach_one(&mark));
            if !is_there() {
                return self.pins.forget(ifname).map(|()| Promotion::Gone);
            }
            moved?;
        }
        Ok(Promotion::Done)
    }

    /// What the marks of clsact filters say.
    fn marks(&self) -> Result<Vec<Attachment>, Error> {
        let names = Pins::names(&self.pins.links())?;
        let marks = names.iter().filter_map(|name| {
            let (ifname, program) = Pins::link_parts(name.strip_suffix(CLSACT_MARK)?)?;
            Some(Attachment {
                ifname,
                program,
                mode: AttachMode::Clsact,
                defunct: false,
            })
        });
        Ok(marks.collect())
    }
}
