//! Attaches the pinned programs to interfaces.
//!
//! On kernels with TCX (6.6 and newer), a program is attached by a TCX link. The link is pinned, so it outlives
//! the process. On older kernels, or if the configuration asks for it, a program is a filter on the clsact qdisc,
//! which exists as long as the interface. The filter's mark, a pin of the program in the folder of the links, makes
//! it possible to list, replace and detach filters like links. During a promotion (`promote`) a program is attached
//! in both ways.

mod promote;

pub use promote::Promotion;

use crate::{
    AttachMode, Error, Pins,
    link::TcxLink,
    pins::{LinkPin, PinsLock, pin},
    remove::detach,
};
use aya::programs::{
    LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use ipip_abi::{Direction, Program};
use nix::{fcntl::FlockArg, net::if_::if_nametoindex};
use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

/// Runs before most filters of other software. The priority is constant, so that the next start finds the filter.
const CLSACT_PRIORITY: u16 = 10;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);
/// Longest wait for the kernel to end a link that was just unpinned.
const UNPIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A program on an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The interface's name when the program was attached.
    pub ifname: String,
    /// The program.
    pub program: Program,
    /// [`AttachMode::Tcx`] or [`AttachMode::Clsact`].
    pub mode: AttachMode,
    /// The interface no longer exists; only the pin is left.
    pub defunct: bool,
}

/// The pinned programs, ready to be attached.
#[derive(Debug)]
pub struct Programs {
    pins: Pins,
    mode: AttachMode,
    loaded: Vec<(Program, SchedClassifier)>,
    /// While this lock is held, no process replaces the pinned programs.
    _lock: Option<PinsLock>,
}

impl Programs {
    /// Opens the pinned programs.
    ///
    /// # Errors
    /// [`Error::NotPinned`] if there is no datapath, or [`Error::OtherVersion`] if only another version has one;
    /// [`Error::NoTcx`] if the kernel lacks the mode.
    pub fn open(pins: &Pins, mode: AttachMode) -> Result<Self, Error> {
        Self::open_some(pins, mode, &Program::ALL, None)
    }

    /// Opens only the programs that pods need, with a shared lock: until the returned value is dropped, the agent
    /// replaces no program. Otherwise ADD could attach an old program after the agent has replaced all attached ones.
    ///
    /// # Errors
    /// The errors of [`Programs::open`], and [`Error::OtherVersion`] if the attached programs are of another version.
    pub fn open_for_pods(pins: &Pins, mode: AttachMode) -> Result<Self, Error> {
        if !pins.exist() {
            return Err(pins.absent());
        }
        let lock = pins.lock(FlockArg::LockShared)?;
        pins.expect_current()?;
        Self::open_some(pins, mode, &[Program::FromPod, Program::ToPod], Some(lock))
    }

    fn open_some(
        pins: &Pins,
        mode: AttachMode,
        names: &[Program],
        lock: Option<PinsLock>,
    ) -> Result<Self, Error> {
        let mode = mode.resolve()?;
        if !pins.exist() {
            return Err(pins.absent());
        }
        let mut loaded = Vec::new();
        for &name in names {
            let program = SchedClassifier::from_pin(pins.program(name))
                .map_err(Error::program("open", name, None))?;
            loaded.push((name, program));
        }
        Ok(Self {
            pins: pins.clone(),
            mode,
            loaded,
            _lock: lock,
        })
    }

    /// Attaches `from_pod` and `to_pod` to the host side of a pod's veth. Idempotent.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason; a program that was attached before the error stays.
    pub fn attach_pod(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, Program::FromPod)?;
        self.attach(ifname, Program::ToPod)
    }

    /// Attaches `from_uplink` to an uplink. Idempotent.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason.
    pub fn attach_uplink(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, Program::FromUplink)
    }

    /// Attaches `from_host` to `ipip0`. Idempotent.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason.
    pub fn attach_host(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, Program::FromHost)
    }

    /// Attaches `from_far_end` to the far end of `ipip0`. Idempotent.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason.
    pub fn attach_far_end(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, Program::FromFarEnd)
    }

    /// Detaches all our programs from `ifname`. It is no error if there are none, or if the interface does not exist.
    ///
    /// # Errors
    /// One error for each program that could not be detached; all others were detached.
    pub fn detach(&mut self, ifname: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for attachment in self.attached()? {
            if attachment.ifname == ifname {
                errors.extend(self.detach_one(&attachment).err());
            }
        }
        Error::all(errors)
    }

    /// All attached programs, sorted by interface and program.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn attached(&self) -> Result<Vec<Attachment>, Error> {
        let pins = self.pins.link_pins()?.into_iter();
        let attachments = pins.map(|pin| {
            let is_there = match pin.mode {
                AttachMode::Clsact => if_nametoindex(pin.ifname.as_str()).is_ok(),
                _ => self.is_current_link(&pin),
            };
            Attachment {
                ifname: pin.ifname,
                program: pin.program,
                mode: pin.mode,
                defunct: !is_there,
            }
        });
        Ok(attachments.collect())
    }

    /// Replaces all attached programs that are not the pinned ones. Returns whether there were any. TCX links and
    /// filters are replaced in place, so that no packet bypasses the programs.
    pub(crate) fn replace_attached(&mut self) -> Result<bool, Error> {
        let (mut errors, mut any) = (Vec::new(), false);
        for pin in self.pins.link_pins()? {
            let index = if_nametoindex(pin.ifname.as_str());
            let (is_current, is_there) = match pin.mode {
                AttachMode::Clsact => (self.is_current_mark(&pin), index.is_ok()),
                // The link may belong to an earlier interface of this name.
                _ => (
                    self.is_current_link(&pin),
                    self.link_of(&pin)
                        .is_ok_and(|link| Ok(link.ifindex) == index),
                ),
            };
            if is_current || !is_there {
                continue;
            }
            any = true;
            let result = match pin.mode {
                AttachMode::Clsact => self.attach_clsact(&pin.ifname, pin.program),
                _ => self.replace_tcx(&pin.ifname, pin.program),
            };
            // DEL takes no lock: it deletes the interface first, and may not have seen a new mark.
            if if_nametoindex(pin.ifname.as_str()) == index {
                errors.extend(result.err());
            } else {
                errors.extend(self.pins.forget(&pin.ifname).err());
            }
        }
        Error::all(errors).map(|()| any)
    }

    /// A version that is not the current one attaches nothing: its maps may be empty.
    fn attach(&mut self, ifname: &str, program: Program) -> Result<(), Error> {
        self.pins.expect_current()?;
        match self.mode {
            AttachMode::Clsact => self.attach_clsact(ifname, program),
            _ => self.attach_tcx(ifname, program),
        }
    }

    fn attach_tcx(&mut self, ifname: &str, name: Program) -> Result<(), Error> {
        let pin = LinkPin {
            ifname: ifname.to_owned(),
            program: name,
            mode: AttachMode::Tcx,
        };
        let path = self.pins.link(ifname, name, pin.mode);
        if path.exists() {
            if self.is_current_link(&pin) {
                return Ok(());
            }
            let link = self.link_of(&pin);
            if link.is_ok_and(|link| if_nametoindex(ifname) == Ok(link.ifindex)) {
                return self.replace_tcx(ifname, name);
            }
            // The link belongs to an earlier interface of this name.
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let program = self.program(name)?;
        let deadline = Instant::now() + UNPIN_TIMEOUT;
        let id = loop {
            // Attach first: an earlier program that returns a final verdict would hide packets from us. Our
            // programs pass all other traffic on to the next program.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(ifname, attach_type(name), options) {
                // The kernel ends an unpinned link only after an RCU grace period.
                Err(error) if is_still_attached(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                attached => break attached,
            }
        };
        let id = id.map_err(Error::program("attach", name, Some(ifname)))?;
        let link = program
            .take_link(id)
            .map_err(Error::program("attach", name, Some(ifname)))?;
        let link = FdLink::try_from(link).map_err(|source| Error::Link {
            path: path.clone(),
            source,
        })?;
        link.pin(&path)
            .map_err(|source| Error::Pin { path, source })?;
        Ok(())
    }

    fn replace_tcx(&mut self, ifname: &str, name: Program) -> Result<(), Error> {
        let path = self.pins.link(ifname, name, AttachMode::Tcx);
        let at = |source| Error::Link {
            path: path.clone(),
            source,
        };
        let link = PinnedLink::from_pin(&path).map_err(at)?;
        let link = SchedClassifierLink::try_from(FdLink::from(link)).map_err(at)?;
        // The pin keeps the link alive when aya drops it.
        match self.program(name)?.attach_to_link(link) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::program("replace", name, Some(ifname))(source)),
        }
    }

    fn attach_clsact(&mut self, ifname: &str, name: Program) -> Result<(), Error> {
        let mark = self.pins.link(ifname, name, AttachMode::Clsact);
        let attach_type = attach_type(name);
        if let Err(error) = tc::qdisc_add_clsact(ifname)
            && !is_already_there(&error)
        {
            return Err(Error::program("attach", name, Some(ifname))(error.into()));
        }
        let program = self.program(name)?;
        let old = SchedClassifierLink::attached(
            ifname,
            attach_type,
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        )
        .map_err(|source| {
            Error::program("attach", name, Some(ifname))(TcError::IoError(source).into())
        })?;
        // A filter from an earlier start is replaced in place.
        let id = program.attach_to_link(old).or_else(|_absent| {
            let options = NlOptions {
                priority: CLSACT_PRIORITY,
                handle: CLSACT_HANDLE,
                classid: None,
            };
            program.attach_with_options(ifname, attach_type, TcAttachOptions::Netlink(options))
        });
        let link = id
            .and_then(|id| program.take_link(id))
            .map_err(Error::program("attach", name, Some(ifname)))?;
        // The filter must outlive this process, but dropping its handle would remove it.
        std::mem::forget(link);
        // A filter without a mark would be unknown to the next version.
        pin(program, &mark)
    }

    fn detach_one(&mut self, attachment: &Attachment) -> Result<(), Error> {
        let pin = LinkPin {
            ifname: attachment.ifname.clone(),
            program: attachment.program.name().to_owned(),
            mode: attachment.mode,
        };
        detach(&self.pins.links(), &pin)
    }

    /// Whether the pinned link runs the pinned program on the interface of this name.
    fn is_current_link(&self, pin: &LinkPin) -> bool {
        let own = self.loaded.iter().find(|(known, _)| *known == pin.program);
        let Some(Ok(own)) = own.map(|(_, program)| program.info()) else {
            return false;
        };
        self.link_of(pin).is_ok_and(|link| {
            link.program_id == own.id() && if_nametoindex(pin.ifname.as_str()) == Ok(link.ifindex)
        })
    }

    /// The pinned TCX link.
    fn link_of(&self, pin: &LinkPin) -> io::Result<TcxLink> {
        TcxLink::from_pin(&self.pins.link(&pin.ifname, pin.program, pin.mode))
    }

    /// Whether the mark pins the same program as the folder of the programs.
    fn is_current_mark(&self, pin: &LinkPin) -> bool {
        let id = |path| ProgramInfo::from_pin(path).ok().map(|info| info.id());
        let marked = id(self.pins.link(&pin.ifname, pin.program, pin.mode));
        marked.is_some() && marked == id(self.pins.program(pin.program))
    }

    fn program(&mut self, name: Program) -> Result<&mut SchedClassifier, Error> {
        let found = self.loaded.iter_mut().find(|(known, _)| *known == name);
        found
            .map(|(_, program)| program)
            .ok_or(Error::NoProgram(name))
    }
}

fn attach_type(program: Program) -> TcAttachType {
    match program.direction() {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

fn is_still_attached(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error)
        if error.io_error.kind() == io::ErrorKind::AlreadyExists)
}

fn is_already_there(error: &TcError) -> bool {
    match error {
        TcError::AlreadyAttached => true,
        TcError::NetlinkError(error) => error.raw_os_error() == Some(nix::libc::EEXIST),
        _ => false,
    }
}
