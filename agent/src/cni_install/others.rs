//! The other files in the folder of CNI configurations.

use super::foreign;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

/// Plugins that call the network of another file, and so are no network of their own.
const DELEGATING: [&str; 2] = ["multus", "multus-shim"];

/// The files apart from ours.
#[derive(Debug, Default)]
pub struct Others {
    /// Lists of our network under other names, which an earlier setting or version of the agent wrote.
    pub earlier: Vec<PathBuf>,
    /// Names of other networks' files, in the order in which runtimes read them.
    pub networks: Vec<String>,
}

impl Others {
    /// Reads the folder of our file `path`.
    pub fn beside(path: &Path) -> Self {
        let mut others = Self::default();
        let entries = path.parent().map(fs::read_dir).into_iter().flatten();
        for entry in entries.flatten().flatten() {
            let other = entry.path();
            let end = other.extension().unwrap_or_default();
            if other == path || !["conf", "conflist", "json"].iter().any(|it| end == *it) {
                continue;
            }
            let content = read(&other).unwrap_or_default();
            if foreign::is_ours(&content) {
                others.earlier.push(other);
            } else if !DELEGATING.iter().any(|plugin| content["type"] == *plugin) {
                let name = entry.file_name();
                others.networks.push(name.to_string_lossy().into_owned());
            }
        }
        others.networks.sort();
        others
    }
}

/// The content of a configuration, once it can be read. Most programs do not replace a file but write into it, so for a moment it
/// is empty, or ends early: to take it for broken would undo what they write. None if it stays so for a tenth of a second.
pub fn read_settled(path: &Path) -> Option<Value> {
    read_between(path, || sleep(Duration::from_millis(10)))
}

fn read_between(path: &Path, mut pause: impl FnMut()) -> Option<Value> {
    const LOOKS: u32 = 10;
    for _ in 0..LOOKS {
        let content = read(path);
        if content.is_some() || !path.exists() {
            return content;
        }
        pause();
    }
    read(path)
}

/// The content of a configuration; none if it cannot be read.
pub fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_that_is_being_written_is_read_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let nothing = || panic!("nobody writes it");
        assert_eq!(read_between(&path, nothing), None);
        fs::write(&path, "").unwrap();
        let mut steps = ["", "{\"name\":", "{\"name\": \"ipip\"}"].into_iter();
        let write = || fs::write(&path, steps.next().unwrap()).unwrap();
        assert_eq!(read_between(&path, write), Some(json!({"name": "ipip"})));
        assert_eq!(steps.next(), None);
        fs::write(&path, "{").unwrap();
        let mut pauses = 0;
        assert_eq!(read_between(&path, || pauses += 1), None);
        assert_eq!(pauses, 10);
    }

    #[test]
    fn a_file_of_multus_is_no_other_network_and_an_earlier_name_of_ours_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let ours = r#"{"name": "ipip", "plugins": [{"type": "ipip"}]}"#;
        for (name, text) in [
            ("00-multus.conf", r#"{"type": "multus-shim"}"#),
            ("01-ipip.conflist", ours),
            ("10-ipip.conflist", ours),
            (
                "10-flannel.conflist",
                r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#,
            ),
            ("20-broken.conf", "{"),
            ("README", ""),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let others = Others::beside(&folder.path().join("01-ipip.conflist"));
        assert_eq!(others.earlier, [folder.path().join("10-ipip.conflist")]);
        assert_eq!(others.networks, ["10-flannel.conflist", "20-broken.conf"]);
    }
}
