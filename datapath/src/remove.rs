//! Removes the pinned datapath.

use crate::{AttachMode, Error, Pins, Programs};
use std::{fs, io, path::Path};

/// Detaches and unpins the datapath of every ABI version. It is no error if nothing is pinned. Other files below
/// the same root stay.
///
/// # Errors
/// One error for each part that could not be removed; all other parts were removed.
pub fn remove(pins: &Pins) -> Result<(), Error> {
    let mut errors = Vec::new();
    for version in pins.versions()? {
        if version.exist() {
            match Programs::open(&version, AttachMode::Auto) {
                Ok(mut programs) => errors.extend(programs.detach_all().err()),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(remove_version(&version).err());
    }
    errors.extend(remove_folder(pins.root(), |it| fs::remove_dir(it)).err());
    Error::all(errors)
}

/// Removes the folders of one ABI version. TCX links end with their pins.
///
/// # Errors
/// One error for each folder that could not be removed; all others were removed.
pub(crate) fn remove_version(pins: &Pins) -> Result<(), Error> {
    let mut errors = Vec::new();
    for folder in [pins.links(), pins.programs(), pins.maps()] {
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
