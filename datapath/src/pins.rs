//! Where the datapath is pinned.

use crate::Error;
use ipip_abi::{ABI_VERSION, programs};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Where a node pins its datapath unless it is configured otherwise.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/ipip";

/// Ends the pin of a program that marks a clsact filter.
pub(crate) const CLSACT_MARK: &str = "@clsact";

/// Held as long as it lives.
pub(crate) type PinsLock = Flock<File>;

/// The folders `<root>/v<ABI version>/{maps,programs,links}` in a BPF file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins below `root`; nothing is touched.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root, without the version.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of this ABI version.
    pub fn version_dir(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }

    /// The folder of the maps, each by its name.
    pub fn maps(&self) -> PathBuf {
        self.version_dir().join("maps")
    }

    /// The folder of the programs, each by its name.
    pub fn programs(&self) -> PathBuf {
        self.version_dir().join("programs")
    }

    /// The folder of the TCX links, each as `<interface>@<program>`.
    pub fn links(&self) -> PathBuf {
        self.version_dir().join("links")
    }

    /// The pin of the TCX link of `program` on `ifname`. bpffs refuses names with dots (they are
    /// reserved), which interface names may have; `@` stands in no interface name of ours.
    pub(crate) fn link(&self, ifname: &str, program: &str) -> PathBuf {
        self.links()
            .join(format!("{}@{program}", ifname.replace('.', "%")))
    }

    /// Interface and program of a link's pin, by its file name.
    pub(crate) fn link_parts(name: &str) -> Option<(String, &'static str)> {
        let (ifname, program) = name.rsplit_once('@')?;
        let program = programs::ALL.into_iter().find(|known| *known == program)?;
        Some((ifname.replace('%', "."), program))
    }

    /// The interfaces that programs are pinned to, sorted, also those that are gone.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn interfaces(&self) -> Result<Vec<String>, Error> {
        let mut interfaces: Vec<String> = Self::names(&self.links())?
            .iter()
            .filter_map(|name| Self::link_parts(name.strip_suffix(CLSACT_MARK).unwrap_or(name)))
            .map(|(ifname, _)| ifname)
            .collect();
        interfaces.dedup();
        Ok(interfaces)
    }

    /// Removes the pins of an interface that is gone, and with it what was attached. Asks the
    /// kernel nothing and waits for nothing; fine if there is none.
    ///
    /// # Errors
    /// What could not be removed; the rest was.
    pub fn forget(&self, ifname: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for program in programs::ALL {
            for path in [
                self.link(ifname, program),
                self.clsact_mark(ifname, program),
            ] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        errors.push(Error::io("remove", path)(error));
                    }
                    _ => {}
                }
            }
        }
        Error::all(errors)
    }

    /// Waits for and holds the lock of whoever attaches or replaces programs. It is one of the
    /// folder itself, so it needs no file and ends with its holder.
    pub(crate) fn lock(&self, how: FlockArg) -> Result<PinsLock, Error> {
        let folder = self.version_dir();
        let file = File::open(&folder).map_err(Error::io("open", &folder))?;
        let locked = Flock::lock(file, how);
        locked.map_err(|(_, errno)| Error::io("lock", &folder)(errno.into()))
    }

    /// As [`Pins::lock`], exclusive and without waiting; none if somebody holds it.
    pub(crate) fn try_lock(&self) -> Result<Option<PinsLock>, Error> {
        let folder = self.version_dir();
        let file = File::open(&folder).map_err(Error::io("open", &folder))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io("lock", &folder)(errno.into())),
        }
    }

    /// The pin of a program that marks its clsact filter on `ifname`.
    pub(crate) fn clsact_mark(&self, ifname: &str, program: &str) -> PathBuf {
        let mut path = self.link(ifname, program).into_os_string();
        path.push(CLSACT_MARK);
        path.into()
    }

    /// Whether a whole datapath of this version is pinned here.
    pub fn exist(&self) -> bool {
        programs::ALL
            .iter()
            .all(|program| self.programs().join(program).exists())
    }

    /// Makes the folders.
    pub(crate) fn create(&self) -> Result<(), Error> {
        let existing = self.root.ancestors().find(|folder| folder.exists());
        let on_bpffs = existing
            .and_then(|folder| statfs(folder).ok())
            .is_some_and(|info| info.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(Error::NotBpffs(self.root.clone()));
        }
        for folder in [self.maps(), self.programs(), self.links()] {
            fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        }
        Ok(())
    }

    /// The names in a folder of pins, sorted; none if the folder is absent.
    pub(crate) fn names(folder: &Path) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("read folder", folder))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("read folder", folder))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_pin_tells_its_interface_and_program() {
        let pins = Pins::new("/sys/fs/bpf/test");
        let path = pins.link("eth0.100", programs::FROM_UPLINK);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(!name.contains('.'));
        assert_eq!(
            Pins::link_parts(name),
            Some(("eth0.100".to_owned(), programs::FROM_UPLINK))
        );
        assert_eq!(Pins::link_parts("eth0@other"), None);
    }
}
