//! The record of traffic for `ipipctl traffic`: a JSON file in the state folder, which also an agent that is restarted
//! continues.

use crate::{
    daemon::boot_file::BootFile,
    traffic::{History, Sample},
};
use ipip_datapath::TRAFFIC_FILE;
use nix::time::{ClockId, clock_gettime};
use std::{io, path::Path};

/// Seconds between two samples.
const INTERVAL: u64 = 60;

/// The file, and its content.
#[derive(Debug)]
pub struct TrafficFile {
    file: BootFile,
    history: History,
}

impl TrafficFile {
    /// Continues the file in `state_dir`, if it is of this boot and can be read.
    ///
    /// # Errors
    /// The kernel does not tell the boot or the time.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let file = BootFile::new(state_dir, TRAFFIC_FILE)?;
        let now = now()?;
        let found = file.read::<History>();
        let history = found.filter(|it| it.at() <= Some(now)).unwrap_or_default();
        Ok(Self { file, history })
    }

    /// Whether it is time for the next sample.
    ///
    /// # Errors
    /// The kernel has no such clock.
    pub fn is_due(&self) -> io::Result<bool> {
        let last = self.history.at();
        let now = now()?;
        Ok(last.is_none_or(|at| now >= at + INTERVAL))
    }

    /// Adds samples of the peers of this node, whose realm is `realm`, and writes the file.
    ///
    /// # Errors
    /// The file cannot be written. The next call tries again.
    pub fn record(&mut self, realm: &str, samples: Vec<Sample<'_>>) -> io::Result<()> {
        self.history.record(now()?, realm, samples);
        self.file.write(&self.history)
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
    use std::fs;

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
    fn a_record_is_continued_unless_it_is_of_the_future() {
        let folder = tempfile::tempdir().unwrap();
        let open = || TrafficFile::open(folder.path()).unwrap();
        let mut file = open();
        assert!(file.is_due().unwrap());
        file.record("a", samples(5)).unwrap();
        assert!(!file.is_due().unwrap());
        assert_eq!(open().history, file.history);

        let path = folder.path().join(TRAFFIC_FILE);
        let text = fs::read_to_string(&path).unwrap();
        let at = file.history.at().unwrap();
        let late = text.replace(&format!("\"at\":{at}"), &format!("\"at\":{}", at + 1000));
        assert_ne!(late, text);
        fs::write(&path, late).unwrap();
        assert_eq!(open().history, History::default());
    }
}
