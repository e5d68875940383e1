//! Attaches the pinned programs to interfaces.
//!
//! TCX where the kernel has it (6.6): the link is pinned, so it outlives us. Below, or on demand,
//! a filter on the clsact qdisc, which lives as long as the interface; a pin of the program under
//! the same name marks it, so that both kinds can be listed, replaced and detached alike. A program
//! may be there in both ways for a while: see `promote`.

mod promote;

pub use promote::Promotion;

use crate::{
    AttachMode, Error, Pins,
    link::TcxLink,
    pins::{CLSACT_MARK, PinsLock},
};
use aya::programs::{
    LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
};
use ipip_abi::programs::{ALL, FROM_HOST, FROM_POD, FROM_UPLINK, TO_POD};
use nix::{fcntl::FlockArg, net::if_::if_nametoindex};
use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

/// Before most filters of others, and the same at every start.
const CLSACT_PRIORITY: u16 = 10;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 1);
/// How long a link that was just unpinned may take to end.
const UNPIN_PATIENCE: Duration = Duration::from_secs(1);

/// A program on an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The interface's name when the program was attached.
    pub ifname: String,
    /// The program's name.
    pub program: &'static str,
    /// [`AttachMode::Tcx`] or [`AttachMode::Clsact`].
    pub mode: AttachMode,
    /// The interface is gone, only the pin is left.
    pub defunct: bool,
}

/// The pinned programs, ready to be attached.
#[derive(Debug)]
pub struct Programs {
    pins: Pins,
    mode: AttachMode,
    loaded: Vec<(&'static str, SchedClassifier)>,
    /// While it is held, nobody replaces the pinned programs.
    _lock: Option<PinsLock>,
}

impl Programs {
    /// Opens the pinned programs.
    ///
    /// # Errors
    /// [`Error::NotPinned`] where no datapath is, [`Error::NoTcx`] where the kernel lacks the mode.
    pub fn open(pins: &Pins, mode: AttachMode) -> Result<Self, Error> {
        Self::open_some(pins, mode, &ALL, None)
    }

    /// Opens the programs that pods need, and no other. As long as this lives the agent replaces
    /// no program: else a pod that is being added could get the old one, unseen by the agent.
    ///
    /// # Errors
    /// As [`Programs::open`].
    pub fn open_for_pods(pins: &Pins, mode: AttachMode) -> Result<Self, Error> {
        if !pins.exist() {
            return Err(Error::NotPinned(pins.version_dir()));
        }
        let lock = pins.lock(FlockArg::LockShared)?;
        Self::open_some(pins, mode, &[FROM_POD, TO_POD], Some(lock))
    }

    fn open_some(
        pins: &Pins,
        mode: AttachMode,
        names: &[&'static str],
        lock: Option<PinsLock>,
    ) -> Result<Self, Error> {
        let mode = mode.resolve()?;
        if !pins.exist() {
            return Err(Error::NotPinned(pins.version_dir()));
        }
        let mut loaded = Vec::new();
        for &name in names {
            let program = SchedClassifier::from_pin(pins.programs().join(name))
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

    /// Puts `from_pod` and `to_pod` on the host side of a pod's veth. Idempotent.
    ///
    /// # Errors
    /// [`Error::Program`] with the kernel's reason; what was attached before the error stays.
    pub fn attach_pod(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, FROM_POD)?;
        self.attach(ifname, TO_POD)
    }

    /// Puts `from_uplink` on an uplink. Idempotent.
    ///
    /// # Errors
    /// As [`Programs::attach_pod`].
    pub fn attach_uplink(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, FROM_UPLINK)
    }

    /// Puts `from_host` on `ipip0`. Idempotent.
    ///
    /// # Errors
    /// As [`Programs::attach_pod`].
    pub fn attach_host(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach(ifname, FROM_HOST)
    }

    /// Takes whatever of ours is on `ifname` off. Fine if there is nothing, or no such interface.
    ///
    /// # Errors
    /// What could not be detached; the rest was.
    pub fn detach(&mut self, ifname: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for attachment in self.attached()? {
            if attachment.ifname == ifname {
                errors.extend(self.detach_one(&attachment).err());
            }
        }
        Error::all(errors)
    }

    /// Takes everything off every interface.
    pub(crate) fn detach_all(&mut self) -> Result<(), Error> {
        let mut errors = Vec::new();
        for attachment in self.attached()? {
            errors.extend(self.detach_one(&attachment).err());
        }
        Error::all(errors)
    }

    /// What is attached where, sorted by interface and program.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn attached(&self) -> Result<Vec<Attachment>, Error> {
        let mut attachments = Vec::new();
        for name in Pins::names(&self.pins.links())? {
            let (link, mode) = match name.strip_suffix(CLSACT_MARK) {
                Some(link) => (link, AttachMode::Clsact),
                None => (name.as_str(), AttachMode::Tcx),
            };
            let Some((ifname, program)) = Pins::link_parts(link) else {
                continue;
            };
            let present = match mode {
                AttachMode::Clsact => if_nametoindex(ifname.as_str()).is_ok(),
                _ => self.is_on_tcx(&ifname, program),
            };
            attachments.push(Attachment {
                ifname,
                program,
                mode,
                defunct: !present,
            });
        }
        Ok(attachments)
    }

    /// Puts the pinned programs wherever others of ours are attached, and says whether there were
    /// any. TCX links and filters are replaced in place, so that no packet goes without a program.
    pub(crate) fn replace_attached(&mut self) -> Result<bool, Error> {
        let (mut errors, mut any) = (Vec::new(), false);
        for name in Pins::names(&self.pins.links())? {
            let (link, clsact) = match name.strip_suffix(CLSACT_MARK) {
                Some(link) => (link, true),
                None => (name.as_str(), false),
            };
            let Some((ifname, program)) = Pins::link_parts(link) else {
                continue;
            };
            let is_current = match clsact {
                true => self.is_marked(&name, program),
                false => self.is_on_tcx(&ifname, program),
            };
            if is_current || if_nametoindex(ifname.as_str()).is_err() {
                continue;
            }
            any = true;
            let result = if clsact {
                self.attach_clsact(&ifname, program)
            } else {
                self.replace_tcx(&ifname, program)
            };
            errors.extend(result.err());
        }
        Error::all(errors).map(|()| any)
    }

    fn attach(&mut self, ifname: &str, program: &'static str) -> Result<(), Error> {
        match self.mode {
            AttachMode::Clsact => self.attach_clsact(ifname, program),
            _ => self.attach_tcx(ifname, program),
        }
    }

    fn attach_tcx(&mut self, ifname: &str, name: &'static str) -> Result<(), Error> {
        let path = self.pins.link(ifname, name);
        if path.exists() {
            if self.is_on_tcx(ifname, name) {
                return Ok(());
            }
            // The link of an interface of this name that is gone.
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        let program = self.program(name)?;
        let deadline = Instant::now() + UNPIN_PATIENCE;
        let id = loop {
            // First: a program before ours that ends the chain would hide packets from us, ours
            // hands on whatever is not ours.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            match program.attach_with_options(ifname, direction(name), options) {
                // The kernel ends an unpinned link a little later (after an RCU grace period).
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

    fn replace_tcx(&mut self, ifname: &str, name: &'static str) -> Result<(), Error> {
        let path = self.pins.link(ifname, name);
        let at = |source| Error::Link {
            path: path.clone(),
            source,
        };
        let link = PinnedLink::from_pin(&path).map_err(at)?;
        let link = SchedClassifierLink::try_from(FdLink::from(link)).map_err(at)?;
        // The pin keeps the link alive when ours is dropped.
        match self.program(name)?.attach_to_link(link) {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::program("replace", name, Some(ifname))(source)),
        }
    }

    fn attach_clsact(&mut self, ifname: &str, name: &'static str) -> Result<(), Error> {
        let mark = self.pins.clsact_mark(ifname, name);
        let attach_type = direction(name);
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
        // Replaces our filter of an earlier start in place; there is none on a new interface.
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
        // The filter must stay when this process ends; dropping its handle would remove it.
        std::mem::forget(link);
        let _ = fs::remove_file(&mark);
        program
            .pin(&mark)
            .map_err(|source| Error::Pin { path: mark, source })
    }

    fn detach_one(&mut self, attachment: &Attachment) -> Result<(), Error> {
        let Attachment {
            ifname,
            program,
            mode,
            ..
        } = attachment;
        let path = match mode {
            AttachMode::Clsact => {
                let result = tc::qdisc_detach_program(ifname, direction(program), program);
                if let Err(error) = result
                    && !attachment.defunct
                    && !is_absent(&error)
                {
                    return Err(Error::program("detach", program, Some(ifname))(
                        error.into(),
                    ));
                }
                self.pins.clsact_mark(ifname, program)
            }
            _ => self.pins.link(ifname, program),
        };
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Whether the pinned link runs the pinned program on the interface.
    fn is_on_tcx(&self, ifname: &str, name: &str) -> bool {
        let own = self.loaded.iter().find(|(known, _)| *known == name);
        let Some(Ok(own)) = own.map(|(_, program)| program.info()) else {
            return false;
        };
        let link = TcxLink::from_pin(&self.pins.link(ifname, name));
        link.is_ok_and(|link| {
            link.program_id == own.id() && if_nametoindex(ifname) == Ok(link.ifindex)
        })
    }

    /// Whether the mark called `pin` is of the pinned program.
    fn is_marked(&self, pin: &str, name: &str) -> bool {
        let id = |path| ProgramInfo::from_pin(path).ok().map(|info| info.id());
        let marked = id(self.pins.links().join(pin));
        marked.is_some() && marked == id(self.pins.programs().join(name))
    }

    fn program(&mut self, name: &'static str) -> Result<&mut SchedClassifier, Error> {
        let found = self.loaded.iter_mut().find(|(known, _)| *known == name);
        found
            .map(|(_, program)| program)
            .ok_or(Error::NoProgram(name))
    }
}

fn direction(program: &str) -> TcAttachType {
    match program {
        FROM_HOST | TO_POD => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
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

fn is_absent(error: &TcError) -> bool {
    matches!(error, TcError::IoError(error) if error.kind() == io::ErrorKind::NotFound)
}
