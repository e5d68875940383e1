//! The file with the private key and the boot to which it belongs, because not every host empties `/run`.

use super::PrivateKey;
use crate::files;
use ipip_datapath::BOOT_ID;
use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tracing::{info, warn};

/// Its name in the folder of the setting `runDir`.
pub const KEY_FILE: &str = "probe.key";

/// The folder of the host in which a key outlives the agent's pod, whose own folder ends with it. `None` if `run_dir` is one
/// of the host.
pub fn host_folder(host_root: &Path) -> Option<PathBuf> {
    (host_root != Path::new("/")).then(|| host_root.join("run/ipip"))
}

/// Bytes of the key; the name of the boot follows.
const LEN: usize = 32;

/// Only the agents of this node may read it.
const MODE: u32 = 0o600;

/// There is no private key.
#[derive(Debug, thiserror::Error)]
#[error(
    "runDir: cannot {action} {path}: {source}; remedy: run `ipip-agent prepare`, which writes it, or make the folder writable"
)]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Reads the key in `run_dir`. A file that is absent, damaged, or can be read by others is replaced by a new key.
///
/// # Errors
/// There is no such file, and it cannot be written.
pub fn load_or_create(run_dir: &Path) -> Result<PrivateKey, Error> {
    let found = load(run_dir)?;
    found.map_or_else(|| create(run_dir), Ok)
}

/// Reads the key in `run_dir`; `None` if there is none that can be used.
///
/// # Errors
/// The file cannot be read.
pub fn load(run_dir: &Path) -> Result<Option<PrivateKey>, Error> {
    let path = run_dir.join(KEY_FILE);
    match read(&path) {
        Ok(Ok(key)) => Ok(Some(key)),
        Ok(Err(why)) => {
            warn!(path = %path.display(), why, "the key of the probes cannot be used");
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error {
            action: "read",
            path,
            source,
        }),
    }
}

/// Writes the key into the file in `run_dir`, unless it is there.
///
/// # Errors
/// The file cannot be read or written.
pub fn store(key: &PrivateKey, run_dir: &Path) -> Result<(), Error> {
    let found = load(run_dir)?;
    if found.is_some_and(|found| found.public() == key.public()) {
        return Ok(());
    }
    write(run_dir, key.secret.as_bytes())
}

fn create(run_dir: &Path) -> Result<PrivateKey, Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(io::Error::other)
        .map_err(|source| Error {
            action: "write",
            path: run_dir.join(KEY_FILE),
            source,
        })?;
    write(run_dir, &bytes)?;
    let key = PrivateKey::from(bytes);
    info!(folder = %run_dir.display(), public = %key.public(), "a key for probes is written");
    Ok(key)
}

fn write(run_dir: &Path, key: &[u8; LEN]) -> Result<(), Error> {
    let path = run_dir.join(KEY_FILE);
    let written = fs::create_dir_all(run_dir)
        .and_then(|()| fs::read(BOOT_ID))
        .and_then(|boot| files::replace(&path, &[&key[..], &boot].concat(), MODE));
    written.map_err(|source| Error {
        action: "write",
        path,
        source,
    })
}

/// The key, or the reason why the file has none.
fn read(path: &Path) -> io::Result<Result<PrivateKey, &'static str>> {
    // Without waiting for the writer of a pipe, and without following a link that somebody placed there.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Ok(Err("others may have read it"));
    }
    let mut bytes = Vec::new();
    file.take(1024).read_to_end(&mut bytes)?;
    let Some((key, boot)) = bytes.split_first_chunk::<LEN>() else {
        return Ok(Err("it has no key"));
    };
    // The prober's clock began again, and must not do so under the same key.
    if boot != fs::read(BOOT_ID)? {
        return Ok(Err("it is of an earlier boot"));
    }
    Ok(Ok(PrivateKey::from(*key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::Permissions, os::unix::fs::symlink};
    use tempfile::TempDir;

    #[test]
    fn the_key_is_written_once_for_its_owner_alone_and_used_again() {
        let folder = TempDir::new().unwrap();
        let run_dir = folder.path().join("run");
        assert!(load(&run_dir).unwrap().is_none());
        let key = load_or_create(&run_dir).unwrap();
        let path = run_dir.join(KEY_FILE);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        let again = load_or_create(&run_dir).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 1);

        let other = load_or_create(&folder.path().join("other")).unwrap();
        assert_ne!(other.public(), key.public());
    }

    #[test]
    fn a_file_that_is_damaged_of_another_boot_or_that_others_can_read_is_replaced() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(KEY_FILE);
        let first = load_or_create(folder.path()).unwrap();
        let other_boot = [&[7; LEN][..], b"7ad4eb4c-d5a9-4ab2-a1d2-4ff8b3b8d5f7\n"].concat();
        let damage: [&dyn Fn(); 5] = [
            &|| fs::write(&path, []).unwrap(),
            &|| fs::write(&path, [7; LEN - 1]).unwrap(),
            &|| fs::write(&path, [7; LEN]).unwrap(),
            &|| fs::write(&path, &other_boot).unwrap(),
            &|| fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap(),
        ];
        let mut last = first.public();
        for damage in damage {
            damage();
            let key = load_or_create(folder.path()).unwrap();
            assert_ne!(key.public(), last);
            assert_eq!(
                load_or_create(folder.path()).unwrap().public(),
                key.public()
            );
            last = key.public();
        }
    }

    #[test]
    fn a_stored_key_takes_the_place_of_another_one() {
        let folder = TempDir::new().unwrap();
        let (host, pod) = (folder.path().join("host"), folder.path().join("pod"));
        let key = load_or_create(&host).unwrap();
        load_or_create(&pod).unwrap();
        for _ in 0..2 {
            store(&key, &pod).unwrap();
            let found = load(&pod).unwrap().unwrap();
            assert_eq!(found.public(), key.public());
        }
    }

    #[test]
    fn an_error_names_the_file_and_the_remedy() {
        let folder = TempDir::new().unwrap();
        symlink("/dev/zero", folder.path().join(KEY_FILE)).unwrap();
        let error = load_or_create(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("cannot read") && error.contains(KEY_FILE),
            "{error}"
        );
        let error = load_or_create(Path::new("/proc/ipip")).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("cannot write /proc/ipip/probe.key"),
            "{error}"
        );
        assert!(error.contains("remedy"), "{error}");
    }
}
