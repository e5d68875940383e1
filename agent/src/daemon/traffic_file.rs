//! The record of traffic for `ipipctl traffic`: a JSON file in the state folder, which also an agent that is restarted
//! continues.

use crate::{
    files::{self, absent_is_fine},
    traffic::{History, Sample},
};
use ipip_datapath::{BOOT_ID, TRAFFIC_FILE};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tracing::warn;

/// Seconds between two samples.
const INTERVAL: u64 = 60;

/// The file, and its content.
#[derive(Debug)]
pub struct TrafficFile {
    path: PathBuf,
    record: Record,
}

/// The content.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    /// The boot in which the maps have counted.
    boot: String,
    #[serde(flatten)]
    history: History,
}

impl TrafficFile {
    /// Reads the file in `state_dir`. A record of another boot, or one that cannot be read, is not continued.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join(TRAFFIC_FILE);
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let now = now()?;
        let found = read(&path).unwrap_or_else(|error| {
            warn!(%error, path = %path.display(), "the record of traffic begins again");
            None
        });
        let is_of_this_boot = |it: &Record| it.boot == boot && it.history.at() <= Some(now);
        let record = found.filter(is_of_this_boot).unwrap_or(Record {
            boot,
            history: History::default(),
        });
        Ok(Self { path, record })
    }

    /// Whether it is time for the next sample.
    ///
    /// # Errors
    /// The kernel has no such clock.
    pub fn is_due(&self) -> io::Result<bool> {
        let last = self.record.history.at();
        let now = now()?;
        Ok(last.is_none_or(|at| now >= at + INTERVAL))
    }

    /// Adds samples of the peers of this node, whose realm is `realm`, and writes the file.
    ///
    /// # Errors
    /// The file cannot be written. The next call tries again.
    pub fn record(&mut self, realm: &str, samples: Vec<Sample<'_>>) -> io::Result<()> {
        self.record.history.record(now()?, realm, samples);
        let text = serde_json::to_string(&self.record)? + "\n";
        // A power failure may damage it, because the next boot does not use it.
        files::replace_unsynced(&self.path, &text)
    }
}

/// Removes the record from a state folder. An absent one is no error.
pub fn remove(state_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(state_dir.join(TRAFFIC_FILE)))
}

/// The content of the file; `None` if it is absent.
fn read(path: &Path) -> io::Result<Option<Record>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Seconds since the boot.
fn now() -> io::Result<u64> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.tv_sec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipip_abi::PeerBytes;

    fn samples(sent: u64) -> Vec<Sample<'static>> {
        let counted = PeerBytes {
            tx: [sent, 0],
            rx: [0; 2],
        };
        vec![Sample {
            node: "b1",
            realm: "b",
            peer: 1,
            counted,
        }]
    }

    #[test]
    fn a_record_of_this_boot_is_continued_and_no_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TRAFFIC_FILE);
        let open = || TrafficFile::open(folder.path()).unwrap();
        let mut file = open();
        assert!(file.is_due().unwrap());
        file.record("a", samples(5)).unwrap();
        assert!(!file.is_due().unwrap());
        assert_eq!(open().record.history, file.record.history);

        let text = fs::read_to_string(&path).unwrap();
        let at = file.record.history.at().unwrap();
        let damaged = [
            text.replace(&file.record.boot, "another"),
            // From the future.
            text.replace(&format!("\"at\":{at}"), &format!("\"at\":{}", at + 1000)),
            text[..text.len() / 2].to_owned(),
        ];
        for damaged in damaged {
            assert_ne!(damaged, text);
            fs::write(&path, damaged).unwrap();
            assert_eq!(open().record.history, History::default());
        }
        remove(folder.path()).unwrap();
        remove(folder.path()).unwrap();
        assert_eq!(open().record.history, History::default());
    }
}
