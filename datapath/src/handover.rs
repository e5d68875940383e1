//! Takes the hooks over from another ABI version, as `ipip_abi::handover` describes.
//!
//! The programs of the other version stay attached while this version's maps are filled. Then each hook gets this
//! version's program in place of the other one, so a packet meets one program of either version, and both have full
//! maps. Flows are in shared maps, so it does not matter which of them a packet's reply meets.
//!
//! If this process is killed, the other version stays current, or this version is current and the next [`load`] does the
//! rest: from then on it alone adds pods.
//!
//! [`load`]: crate::load()

use crate::{
    AttachMode, Error, Pins, Pods, Programs,
    maps::failed,
    pins::LinkPin,
    remove::{detach, remove_version},
};
use ipip_abi::maps;
use nix::fcntl::FlockArg;
use std::fs;

/// Makes this version the current one: fills `PODS`, replaces the programs of the other version wherever they are
/// attached, and removes what it left. The caller has filled all other maps. Idempotent.
///
/// # Errors
/// The first error before the hooks are replaced: then the other version stays current. Afterwards one error for each
/// hook that could not be replaced; the next call tries again.
pub fn take_over(pins: &Pins, mode: AttachMode) -> Result<(), Error> {
    // ADD of any version's plugin holds this lock from its first check of the version until its pod is complete.
    let _lock = pins.lock(FlockArg::LockExclusive)?;
    let mut programs = Programs::open(pins, mode)?;
    if pins.other_current()?.is_some() {
        let filled = Pods::open(pins)?.fill_from_records();
        filled.map_err(failed("write", &maps::PODS))?;
        pins.make_current()?;
    }
    complete(pins, &mut programs).map(drop)
}

/// Replaces the programs on all hooks, and removes what other versions left. The caller holds the lock of the pins, and
/// this version is the current one. Returns whether a program was replaced.
pub(crate) fn complete(pins: &Pins, programs: &mut Programs) -> Result<bool, Error> {
    let replaced = programs.replace_attached()?;
    for pin in LinkPin::of_any_version(&pins.links())? {
        if pin.clone().known().is_none() {
            detach(&pins.links(), &pin)?;
        }
    }
    pins.remove_unfinished_links()?;
    for other in pins.versions()? {
        if other != *pins {
            detach_of_development(pins, &other)?;
            remove_version(&other)?;
        }
    }
    Ok(replaced)
}

/// Removes a development version's links. A filter that has been replaced in place is this version's.
fn detach_of_development(pins: &Pins, other: &Pins) -> Result<(), Error> {
    let folder = other.development_links();
    for pin in LinkPin::of_any_version(&folder)? {
        let name = pin.file_name();
        if pins.links().join(&name).exists() {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        } else {
            detach(&folder, &pin)?;
        }
    }
    Ok(())
}
