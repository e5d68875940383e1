//! Loads the object, or adopts what is pinned; and removes it all.

use crate::{AttachMode, Error, Pins, Programs, maps::check_layout};
use aya::{
    EbpfLoader, include_bytes_aligned,
    programs::{ProgramError, ProgramInfo, SchedClassifier},
};
use ipip_abi::{maps, programs};
use nix::fcntl::FlockArg;
use std::{fs, io, path::Path};

/// The four programs and the maps, as `cargo xtask build-ebpf` made them.
static OBJECT: &[u8] = include_bytes_aligned!(env!("IPIP_EBPF_OBJECT"));

/// What [`load`] found and did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LoadOutcome {
    /// Nothing was pinned; all is new.
    Created,
    /// The same datapath was there already.
    Adopted,
    /// The maps were adopted, programs were replaced wherever they are attached.
    ProgramsReplaced,
}

/// Makes sure that the datapath of this version is loaded and pinned.
///
/// # Errors
/// [`Error::NoTcx`] where the kernel lacks the mode and [`Error::Layout`] where a pinned map is of
/// another shape (nothing is changed then), [`Error::NotBpffs`] where the pins cannot be made,
/// [`Error::Object`] or [`Error::Program`] where the kernel refuses the object.
pub fn load(pins: &Pins, mode: AttachMode) -> Result<LoadOutcome, Error> {
    let mode = mode.resolve()?;
    pins.create()?;
    for spec in maps::ALL {
        check_layout(pins, spec)?;
    }
    let existed = pins.exist();
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(pins.maps())
        .load(OBJECT)?;
    let mut replaced = false;
    let _lock = pins.lock(FlockArg::LockExclusive)?;
    for name in programs::ALL {
        let program: &mut SchedClassifier = object
            .program_mut(name)
            .ok_or(Error::NoProgram(name))?
            .try_into()
            .map_err(Error::program("open", name, None))?;
        program.load().map_err(Error::program("load", name, None))?;
        if tag_of_pinned(pins, name)
            != Some(tag(program).map_err(Error::program("inspect", name, None))?)
        {
            pin(pins, name, program)?;
            replaced = true;
        }
    }
    if !existed {
        return Ok(LoadOutcome::Created);
    }
    // Also where nothing was replaced now: who did it before us may have died halfway.
    let stale = Programs::open(pins, mode)?.replace_attached()?;
    match replaced || stale {
        true => Ok(LoadOutcome::ProgramsReplaced),
        false => Ok(LoadOutcome::Adopted),
    }
}

/// Detaches and unpins the datapath of every version. Fine if nothing is there; what others have
/// pinned below the same root stays.
///
/// # Errors
/// What could not be removed; the rest was.
pub fn remove(pins: &Pins) -> Result<(), Error> {
    let mut errors = Vec::new();
    if pins.exist() {
        match Programs::open(pins, AttachMode::Auto) {
            Ok(mut programs) => errors.extend(programs.detach_all().err()),
            Err(error) => errors.push(error),
        }
    }
    for version in Pins::names(pins.root())? {
        let is_ours = version
            .strip_prefix('v')
            .is_some_and(|number| number.parse::<u32>().is_ok());
        if is_ours {
            let folder = pins.root().join(version);
            for part in ["links", "programs", "maps"] {
                errors.extend(remove_folder(&folder.join(part), |it| fs::remove_dir_all(it)).err());
            }
            errors.extend(remove_folder(&folder, |it| fs::remove_dir(it)).err());
        }
    }
    errors.extend(remove_folder(pins.root(), |it| fs::remove_dir(it)).err());
    Error::all(errors)
}

/// That it is not there, or that others use it too, is fine.
fn remove_folder(folder: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match remove(folder) {
        // Busy is the mount point of the BPF file system itself.
        Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotFound | ResourceBusy) => {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn tag(program: &SchedClassifier) -> Result<u64, ProgramError> {
    Ok(program.info()?.tag())
}

/// The pinned program's tag; none if it is absent or unreadable, which both mean: pin anew.
fn tag_of_pinned(pins: &Pins, name: &str) -> Option<u64> {
    let info = ProgramInfo::from_pin(pins.programs().join(name)).ok()?;
    Some(info.tag())
}

/// Puts the program in the place of what is pinned, so that a plugin always finds one.
fn pin(pins: &Pins, name: &'static str, program: &mut SchedClassifier) -> Result<(), Error> {
    let path = pins.programs().join(name);
    // bpffs reserves dots in names.
    let fresh = pins.programs().join(format!("{name}~"));
    let _ = fs::remove_file(&fresh);
    program.pin(&fresh).map_err(|source| Error::Pin {
        path: fresh.clone(),
        source,
    })?;
    fs::rename(&fresh, &path).map_err(Error::io("rename pin to", &path))
}
