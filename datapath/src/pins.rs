//! The paths of pinned programs, maps and links.

use crate::{AttachMode, Error};
use aya::programs::SchedClassifier;
use ipip_abi::{
    ABI_VERSION, Program,
    handover::{CURRENT, LINKS, SHARED},
    maps::MapSpec,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// The folder below which a node pins its datapath, unless it is configured otherwise.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/ipip";

/// Suffix of a mark: a pin of a program that stands for a clsact filter.
const CLSACT_MARK: &str = "@clsact";
/// Suffix of a pin until it is complete; see [`unfinished`].
const UNFINISHED: &str = "~";

/// A lock that is held until this value is dropped.
pub(crate) type PinsLock = Flock<File>;

/// The folders of this version, `<root>/v<ABI version>/{maps,programs}`, and those that all versions share,
/// `<root>/{links,shared}`, in a BPF file system. [`ipip_abi::handover`] describes the shared ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pins {
    root: PathBuf,
    version: u32,
}

/// A pin in the folder `links`: either a TCX link, or the mark of a clsact filter, which pins the filter's program.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LinkPin<P = Program> {
    /// The interface's name when the program was attached.
    pub ifname: String,
    /// The program. Its name, if it may be one of another version.
    pub program: P,
    /// [`AttachMode::Tcx`] or [`AttachMode::Clsact`].
    pub mode: AttachMode,
}

impl Pins {
    /// The pins of this ABI version below `root`. No file is touched.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            version: ABI_VERSION,
        }
    }

    /// The root, without the version.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the ABI version.
    pub fn version_dir(&self) -> PathBuf {
        self.root.join(format!("v{}", self.version))
    }

    /// The folder of this version's maps, each under its name.
    pub fn maps(&self) -> PathBuf {
        self.version_dir().join("maps")
    }

    /// The folder of the maps that all versions share, each under its name.
    pub fn shared(&self) -> PathBuf {
        self.root.join(SHARED)
    }

    /// The pin of a map.
    pub fn map(&self, spec: &MapSpec) -> PathBuf {
        let folder = if spec.is_shared() {
            self.shared()
        } else {
            self.maps()
        };
        folder.join(spec.name)
    }

    /// The folder of the programs, each under its name.
    pub fn programs(&self) -> PathBuf {
        self.version_dir().join("programs")
    }

    /// The pin of a program.
    pub fn program(&self, program: Program) -> PathBuf {
        self.programs().join(program.name())
    }

    /// The folder of the TCX links, each as `<interface>@<program>`, and of the marks of clsact filters, each as
    /// `<interface>@<program>@clsact`.
    pub fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    /// The folder of links of this version alone. Only development versions before 6 have one.
    pub(crate) fn development_links(&self) -> PathBuf {
        self.version_dir().join(LINKS)
    }

    /// The pin of an attached program.
    pub(crate) fn link(&self, ifname: &str, program: Program, mode: AttachMode) -> PathBuf {
        let pin = LinkPin {
            ifname: ifname.to_owned(),
            program,
            mode,
        };
        self.links().join(pin.file_name())
    }

    /// The pins of all attached programs that this version has, sorted by interface and program.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub(crate) fn link_pins(&self) -> Result<Vec<LinkPin>, Error> {
        let pins = LinkPin::of_any_version(&self.links())?.into_iter();
        Ok(pins.filter_map(LinkPin::known).collect())
    }

    /// The interfaces that programs are attached to, sorted; interfaces that no longer exist are included, also those with
    /// a pin that a killed process did not finish.
    ///
    /// # Errors
    /// [`Error::Io`] if the pins cannot be read.
    pub fn interfaces(&self) -> Result<Vec<String>, Error> {
        let names = names(&self.links())?;
        let pins = names
            .iter()
            .filter_map(|name| LinkPin::parse(name.trim_end_matches(UNFINISHED)));
        let mut interfaces: Vec<String> = pins.map(|pin| pin.ifname).collect();
        interfaces.sort();
        interfaces.dedup();
        Ok(interfaces)
    }

    /// Removes the pins of an interface that no longer exists. Sends no request about the interface to the kernel
    /// and takes no lock. It is no error if there are no pins.
    ///
    /// # Errors
    /// One error for each pin that could not be removed; all others were removed.
    pub fn forget(&self, ifname: &str) -> Result<(), Error> {
        let mut errors = Vec::new();
        for program in Program::ALL {
            for mode in [AttachMode::Tcx, AttachMode::Clsact] {
                let path = self.link(ifname, program, mode);
                // A process that was killed may have left the second one.
                for path in [unfinished(&path), path] {
                    match fs::remove_file(&path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            errors.push(Error::io("remove", path)(error));
                        }
                        _ => {}
                    }
                }
            }
        }
        Error::all(errors)
    }

    /// Removes pins of links that a killed process did not finish. The caller holds the lock exclusively.
    pub(crate) fn remove_unfinished_links(&self) -> Result<(), Error> {
        for name in names(&self.links())? {
            if name.ends_with(UNFINISHED) {
                let path = self.links().join(name);
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Waits for the lock that serialises attaching and replacing programs, of all versions. The root folder itself is
    /// locked (flock), so the lock needs no file and ends with its process.
    pub(crate) fn lock(&self, how: FlockArg) -> Result<PinsLock, Error> {
        let folder = self.root();
        let file = File::open(folder).map_err(Error::io("open", folder))?;
        let locked = Flock::lock(file, how);
        locked.map_err(|(_, errno)| Error::io("lock", folder)(errno.into()))
    }

    /// Tries to take the lock of [`Pins::lock`] exclusively; none if another process holds it.
    pub(crate) fn try_lock(&self) -> Result<Option<PinsLock>, Error> {
        let folder = self.root();
        let file = File::open(folder).map_err(Error::io("open", folder))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io("lock", folder)(errno.into())),
        }
    }

    /// Whether every program is pinned.
    pub fn exist(&self) -> bool {
        let mut programs = Program::ALL.into_iter();
        programs.all(|program| self.program(program).exists())
    }

    /// The ABI version whose programs are attached, if it is another one.
    ///
    /// # Errors
    /// [`Error::Io`] if the link to its folder cannot be read.
    pub fn other_current(&self) -> Result<Option<u32>, Error> {
        let path = self.root.join(CURRENT);
        let target = match fs::read_link(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            target => target.map_err(Error::io("read", &path))?,
        };
        let version = target.to_str().and_then(version_of);
        // A link whose folder is gone says nothing.
        Ok(version.filter(|version| *version != self.version && path.exists()))
    }

    /// Fails unless the attached programs are of this version, or there are none.
    ///
    /// # Errors
    /// [`Error::OtherVersion`]; [`Error::Io`] if the link to the current folder cannot be read.
    pub fn expect_current(&self) -> Result<(), Error> {
        match self.other_current()? {
            None => Ok(()),
            Some(found) => Err(Error::OtherVersion {
                root: self.root.clone(),
                found,
                own: self.version,
            }),
        }
    }

    /// The error for a program or map of this version that is not pinned.
    pub(crate) fn absent(&self) -> Error {
        match self.expect_current() {
            Err(error) => error,
            Ok(()) => Error::NotPinned(self.version_dir()),
        }
    }

    /// Declares that the attached programs are of this version. The kernel replaces the link atomically.
    pub(crate) fn make_current(&self) -> Result<(), Error> {
        let path = self.root.join(CURRENT);
        let target = self.version_dir();
        let target = target.file_name().unwrap_or_default();
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let fresh = unfinished(&path);
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh).map_err(Error::io("make link", &fresh))?;
        fs::rename(&fresh, &path).map_err(Error::io("rename link to", &path))
    }

    /// The pins of every ABI version that has a folder below the root.
    pub(crate) fn versions(&self) -> Result<Vec<Self>, Error> {
        let names = names(&self.root)?;
        let versions = names.iter().filter_map(|name| {
            Some(Self {
                root: self.root.clone(),
                version: version_of(name)?,
            })
        });
        Ok(versions.collect())
    }

    /// Creates the folders.
    pub(crate) fn create(&self) -> Result<(), Error> {
        let existing = self.root.ancestors().find(|folder| folder.exists());
        let on_bpffs = existing
            .and_then(|folder| statfs(folder).ok())
            .is_some_and(|info| info.filesystem_type() == BPF_FS_MAGIC);
        if !on_bpffs {
            return Err(Error::NotBpffs(self.root.clone()));
        }
        for folder in [self.maps(), self.programs(), self.links(), self.shared()] {
            fs::create_dir_all(&folder).map_err(|source| match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Error::Forbidden {
                        path: folder,
                        source,
                    }
                }
                _ => Error::io("make folder", folder)(source),
            })?;
        }
        Ok(())
    }
}

impl<P: ToString> LinkPin<P> {
    /// bpffs reserves dots in file names, but interface names may contain them, so `%` replaces them. No interface
    /// that we attach to has `@` in its name.
    pub(crate) fn file_name(&self) -> String {
        let mark = match self.mode {
            AttachMode::Clsact => CLSACT_MARK,
            _ => "",
        };
        let program = self.program.to_string();
        format!("{}@{program}{mark}", self.ifname.replace('.', "%"))
    }
}

impl LinkPin<String> {
    fn parse(name: &str) -> Option<Self> {
        let (link, mode) = match name.strip_suffix(CLSACT_MARK) {
            Some(link) => (link, AttachMode::Clsact),
            None => (name, AttachMode::Tcx),
        };
        let (ifname, program) = link.rsplit_once('@')?;
        // A pin that its process did not finish.
        if program.ends_with(UNFINISHED) {
            return None;
        }
        Some(Self {
            ifname: ifname.replace('%', "."),
            program: program.to_owned(),
            mode,
        })
    }

    /// The pin, if this version has the program.
    pub(crate) fn known(self) -> Option<LinkPin> {
        Some(LinkPin {
            ifname: self.ifname,
            program: Program::by_name(&self.program)?,
            mode: self.mode,
        })
    }
}

impl LinkPin {
    /// The pins in a folder of links, also those of programs that this version does not have, sorted by interface and
    /// program. Other files are skipped.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub(crate) fn of_any_version(folder: &Path) -> Result<Vec<LinkPin<String>>, Error> {
        let names = names(folder)?;
        Ok(names.iter().filter_map(|it| LinkPin::parse(it)).collect())
    }
}

/// Pins the program at `path`, in place of what is pinned there, atomically.
pub(crate) fn pin(program: &mut SchedClassifier, path: &Path) -> Result<(), Error> {
    let fresh = unfinished(path);
    let _ = fs::remove_file(&fresh);
    program.pin(&fresh).map_err(|source| Error::Pin {
        path: fresh.clone(),
        source,
    })?;
    fs::rename(&fresh, path).map_err(|error| {
        let _ = fs::remove_file(&fresh);
        Error::io("rename pin to", path)(error)
    })
}

/// The name of a pin until it replaces the one at `path`. bpffs reserves dots in names.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// The ABI version of a folder's name.
fn version_of(name: &str) -> Option<u32> {
    name.strip_prefix('v')?.parse().ok()
}

/// The names in a folder of pins, sorted; none if the folder is absent.
fn names(folder: &Path) -> Result<Vec<String>, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_pin_states_its_interface_program_and_mode() {
        for mode in [AttachMode::Tcx, AttachMode::Clsact] {
            let pin = LinkPin {
                ifname: "eth0.100".to_owned(),
                program: Program::FromUplink,
                mode,
            };
            let name = pin.file_name();
            assert!(!name.contains('.'));
            assert_eq!(LinkPin::parse(&name).and_then(LinkPin::known), Some(pin));
        }
        let other = LinkPin::parse("eth0@other@clsact").unwrap();
        assert_eq!((&*other.ifname, &*other.program), ("eth0", "other"));
        assert_eq!(other.file_name(), "eth0@other@clsact");
        assert_eq!(other.known(), None);
        for unfinished in ["eth0@from_uplink~", "eth0@from_uplink@clsact~"] {
            assert_eq!(LinkPin::parse(unfinished), None);
        }
    }

    /// The plugin's GC cleans up after an ADD that was killed while it attached the first program.
    #[test]
    fn an_unfinished_pin_names_its_interface() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        assert!(pins.interfaces().unwrap().is_empty());
        fs::create_dir(pins.links()).unwrap();
        for name in [
            "veth1@from_pod@clsact~",
            "veth2%7@from_pod",
            "veth2%7@to_pod~",
            "veth2@from_pod@clsact",
            "veth2@of_next",
            "other~",
        ] {
            File::create(pins.links().join(name)).unwrap();
        }
        // No program is attached to the first one for certain.
        let finished: Vec<String> = pins
            .link_pins()
            .unwrap()
            .into_iter()
            .map(|pin| pin.ifname)
            .collect();
        assert_eq!(finished, ["veth2.7", "veth2"]);
        assert_eq!(pins.interfaces().unwrap(), ["veth1", "veth2", "veth2.7"]);
        pins.forget("veth1").unwrap();
        assert_eq!(pins.interfaces().unwrap(), ["veth2", "veth2.7"]);
    }
}
