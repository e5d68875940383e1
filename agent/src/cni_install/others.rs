//! The other files in the folder of CNI configurations.

use super::foreign;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
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

/// The content of a configuration; none if it cannot be read.
pub fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
