//! What container runtimes remember of the pods that our plugin has added.
//!
//! Their CNI library keeps the result of each ADD in a file, which it does not flush to the disk. After a power failure
//! such a file is empty, and the library refuses to delete the network of its pod ("failed to get network \"ipip\" cached
//! result"): the pod neither ends nor starts again. Without the file, it deletes the network, because the plugin needs no
//! result for that.

use super::conflist::NETWORK;
use crate::config::Config;
use serde_json::Value;
use std::{fs, io, path::Path};
use tracing::{info, warn};

/// The folder of libcni, which containerd and CRI-O use, below the host's root. A file is called
/// `<network>-<container>-<interface>`.
const FOLDER: &str = "var/lib/cni/results";

/// Removes the results of our network that a power failure has damaged. Only after a boot, when no datapath is pinned: then no
/// runtime is writing one.
pub fn remove_damaged(config: &Config) {
    if config.pin_root.exists() {
        return;
    }
    let folder = config.host_root.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return failed(&folder, &error),
        Ok(entries) => entries,
    };
    let prefix = format!("{NETWORK}-");
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        let path = entry.path();
        match remove_if_damaged(&path) {
            Ok(true) => info!(path = %path.display(), "a damaged result of a pod is removed"),
            Ok(false) => {}
            Err(error) => failed(&path, &error),
        }
    }
}

fn failed(path: &Path, error: &io::Error) {
    let path = path.display();
    warn!(%error, %path, remedy = "remove it by hand if it is empty", "a pod whose result is damaged does not end");
}

fn remove_if_damaged(path: &Path) -> io::Result<bool> {
    let is_damaged = serde_json::from_slice::<Value>(&fs::read(path)?).is_err();
    if is_damaged {
        fs::remove_file(path)?;
    }
    Ok(is_damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    #[test]
    fn damaged_results_of_our_network_are_removed_after_a_boot_and_all_others_stay() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path).display().to_string();
        let pairs = [("hostRoot", at("")), ("pinRoot", at("pins"))];
        let config = from_pairs("a1", &pairs.each_ref().map(|(key, value)| (*key, &**value)));
        remove_damaged(&config);
        let folder = root.path().join(FOLDER);
        let whole = r#"{"kind":"cniCacheV1","networkName":"ipip"}"#;
        let files = [
            ("ipip-0-eth0", "", false),
            ("ipip-1-eth0", "\0\0\0", false),
            ("ipip-2-eth0", &whole[..20], false),
            ("ipip-3-eth0", whole, true),
            ("ipip2-4-eth0", "", true),
            ("cbr0-5-eth0", "", true),
        ];
        // One that cannot be read stops no other.
        fs::create_dir_all(folder.join("ipip-6-eth0")).unwrap();
        for (name, text, _) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::create_dir(&config.pin_root).unwrap();
        remove_damaged(&config);
        assert!(files.iter().all(|(name, ..)| folder.join(name).exists()));
        fs::remove_dir(&config.pin_root).unwrap();
        remove_damaged(&config);
        for (name, _, stays) in files {
            assert_eq!(folder.join(name).exists(), stays, "{name}");
        }
    }
}
