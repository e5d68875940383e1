//! Removes the pinned datapath.

use crate::{
    AttachMode, Error, Pins,
    pins::{LinkPin, unfinished},
};
use aya::programs::{
    TcAttachType,
    tc::{TcError, qdisc_detach_program},
};
use ipip_abi::handover::CURRENT;
use nix::net::if_::if_nametoindex;
use std::{fs, io, path::Path};

/// Detaches and unpins the datapath of every ABI version. It is no error if nothing is pinned. Other files below
/// the same root stay.
///
/// # Errors
/// One error for each part that could not be removed; all other parts were removed.
pub fn remove(pins: &Pins) -> Result<(), Error> {
    let mut errors = Vec::new();
    let versions = pins.versions()?;
    let of_versions = versions.iter().map(Pins::development_links);
    for folder in of_versions.chain([pins.links()]) {
        match LinkPin::of_any_version(&folder) {
            Ok(links) => errors.extend(links.iter().filter_map(|it| detach(&folder, it).err())),
            Err(error) => errors.push(error),
        }
    }
    for version in versions {
        errors.extend(remove_version(&version).err());
    }
    for folder in [pins.links(), pins.shared()] {
        errors.extend(remove_folder(&folder, |it| fs::remove_dir_all(it)).err());
    }
    let current = pins.root().join(CURRENT);
    // A process that was killed may have left the first one.
    for path in [unfinished(&current), current] {
        errors.extend(remove_folder(&path, |it| fs::remove_file(it)).err());
    }
    errors.extend(remove_folder(pins.root(), |it| fs::remove_dir(it)).err());
    Error::all(errors)
}

/// Detaches a program, also one of another version, and removes its pin. A TCX link ends with its pin. It is no error if
/// the interface is gone.
pub(crate) fn detach(folder: &Path, pin: &LinkPin<String>) -> Result<(), Error> {
    let path = folder.join(pin.file_name());
    if pin.mode == AttachMode::Clsact && if_nametoindex(pin.ifname.as_str()).is_ok() {
        // Which of the two it is, is known only of the programs of this version.
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            match qdisc_detach_program(&pin.ifname, direction, &pin.program) {
                // The interface may be gone by now.
                Err(error) if !is_absent(&error) && if_nametoindex(pin.ifname.as_str()).is_ok() => {
                    return Err(Error::io("detach the filter of", path)(io::Error::other(
                        error,
                    )));
                }
                _ => {}
            }
        }
    }
    fs::remove_file(&path).map_err(Error::io("remove", &path))
}

/// Removes the folders of one ABI version.
///
/// # Errors
/// One error for each folder that could not be removed; all others were removed.
pub(crate) fn remove_version(pins: &Pins) -> Result<(), Error> {
    let mut errors = Vec::new();
    for folder in [pins.development_links(), pins.programs(), pins.maps()] {
        errors.extend(remove_folder(&folder, |it| fs::remove_dir_all(it)).err());
    }
    errors.extend(remove_folder(&pins.version_dir(), |it| fs::remove_dir(it)).err());
    Error::all(errors)
}

/// Calls `remove`. It is no error if the folder is absent, contains other files, or is a mount point.
fn remove_folder(folder: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), Error> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match remove(folder) {
        // The mount point of the BPF file system itself is busy.
        Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotFound | ResourceBusy) => {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn is_absent(error: &TcError) -> bool {
    matches!(error, TcError::IoError(error) if error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn removal_leaves_nothing_of_a_process_that_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::new(folder.path().join("ipip"));
        fs::create_dir_all(pins.programs()).unwrap();
        for name in [CURRENT, "current~"] {
            symlink("v1", pins.root().join(name)).unwrap();
        }
        remove(&pins).unwrap();
        assert!(!pins.root().exists());
    }
}
