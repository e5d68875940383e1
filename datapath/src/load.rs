//! Loads the object, or adopts a datapath that is already pinned.

use crate::{
    AttachMode, Error, KernelVersion, Pins, Programs, handover::complete, kernel_version,
    maps::check_layout, pins::pin,
};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{ProgramError, ProgramInfo, SchedClassifier},
};
use ipip_abi::{Program, maps};
use nix::fcntl::FlockArg;

/// The five programs and the maps, as `cargo xtask build-ebpf` built them.
static OBJECT: &[u8] = include_bytes_aligned!(env!("IPIP_EBPF_OBJECT"));

/// The outcome of [`load`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoadOutcome {
    /// No version was pinned.
    Created,
    /// The same datapath was already pinned.
    Adopted,
    /// The maps were adopted, and programs were replaced wherever they are attached.
    ProgramsReplaced,
    /// The programs of this other ABI version are attached. They stay until the caller has filled the maps and calls
    /// [`take_over`](crate::take_over()); until then this version attaches nothing.
    Waits {
        /// The version whose programs are attached.
        current: u32,
    },
}

/// Makes sure that the datapath of this version is loaded and pinned. If this version is the current one, removes what
/// other versions left.
///
/// # Errors
/// [`Error::NoTcx`] if the kernel lacks the mode and [`Error::Layout`] if a pinned map has other sizes; in both
/// cases no program or map was changed. [`Error::NotBpffs`] if the root is not on bpffs. [`Error::Object`] or
/// [`Error::Program`] if the kernel rejects the object.
pub fn load(pins: &Pins, mode: AttachMode) -> Result<LoadOutcome, Error> {
    let mode = mode.resolve()?;
    pins.create()?;
    for spec in maps::ALL {
        check_layout(pins, spec)?;
    }
    let existed = pins.exist();
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins.maps());
    for spec in maps::SHARED {
        loader.map_pin_path(spec.name, pins.map(spec));
    }
    let object = loader.load(OBJECT).map_err(Error::from);
    let _lock = pins.lock(FlockArg::LockExclusive)?;
    let replaced = match object.and_then(|object| pin_programs(pins, object)) {
        // `ipip-agent prepare` of this version has pinned everything.
        Err(error) if existed && memory_is_limited() && error.is_refusal() => false,
        replaced => replaced?,
    };
    if let Some(current) = pins.other_current()? {
        return Ok(LoadOutcome::Waits { current });
    }
    pins.make_current()?;
    // This also completes the work of an earlier process that was killed after it had pinned the programs, or while it
    // took over.
    let stale = complete(pins, &mut Programs::open(pins, mode)?)?;
    Ok(if !existed {
        LoadOutcome::Created
    } else if replaced || stale {
        LoadOutcome::ProgramsReplaced
    } else {
        LoadOutcome::Adopted
    })
}

/// Whether the kernel charges programs and maps to RLIMIT_MEMLOCK, as before Linux 5.11. An unprivileged container may
/// not raise this limit, and the maps of another process of the same user count, too.
pub fn memory_is_limited() -> bool {
    kernel_version() < KernelVersion::new(5, 11, 0)
}

/// Loads every program and pins those that differ from the pinned ones. Returns whether there were any.
fn pin_programs(pins: &Pins, mut object: Ebpf) -> Result<bool, Error> {
    let mut replaced = false;
    for name in Program::ALL {
        let program: &mut SchedClassifier = object
            .program_mut(name.name())
            .ok_or(Error::NoProgram(name))?
            .try_into()
            .map_err(Error::program("open", name, None))?;
        program.load().map_err(Error::program("load", name, None))?;
        let loaded = tag(program).map_err(Error::program("inspect", name, None))?;
        if tag_of_pinned(pins, name) != Some(loaded) {
            // The CNI plugin always finds a pin.
            pin(program, &pins.program(name))?;
            replaced = true;
        }
    }
    Ok(replaced)
}

fn tag(program: &SchedClassifier) -> Result<u64, ProgramError> {
    Ok(program.info()?.tag())
}

/// The tag of the pinned program; none if the program is absent or unreadable, so that it is pinned again.
fn tag_of_pinned(pins: &Pins, name: Program) -> Option<u64> {
    let info = ProgramInfo::from_pin(pins.program(name)).ok()?;
    Some(info.tag())
}
