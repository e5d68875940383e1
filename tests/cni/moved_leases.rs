//! Leases in folders that the runtime's configuration does not name: the folder of the agent's configuration has
//! changed, and CRI-O and Multus delete a pod with the configuration of its ADD.

use crate::gc::gc;
use anyhow::{Result, ensure};
use ipip_datapath::LEASES_DIR;
use ipip_testkit::{
    cni_node::{Call, CniNode, PLUGINS},
    trash::Item,
};
use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// host-local's default folder, and the folder of the agent's configuration.
const FOLDERS: [&str; 2] = ["/var/lib/cni/networks", LEASES_DIR];

/// A node whose network has a name that no other node on this machine uses, because all share these folders.
struct SharedFolders {
    node: CniNode,
}

impl SharedFolders {
    fn new() -> Result<Self> {
        let node = CniNode::ready()?;
        for folder in FOLDERS {
            let folder = Path::new(folder).join(node.name());
            node.trash().add(Item::Folder(folder));
        }
        Ok(Self { node })
    }

    /// The call with the configuration that names this folder; without one, host-local uses its default.
    fn with<'a>(&self, mut call: Call<'a>, folder: Option<&str>) -> Call<'a> {
        // host-local compares an address only with the leases in its folder.
        let subnet = match folder {
            Some(LEASES_DIR) => "10.42.8.0/24",
            _ => "10.42.9.0/24",
        };
        let mut ipam = json!({"type": "host-local", "ranges": [[{"subnet": subnet}]]});
        if let Some(folder) = folder {
            ipam["dataDir"] = folder.into();
        }
        call.conf["name"] = self.node.name().into();
        call.conf["ipam"] = ipam;
        call
    }

    fn leases(&self) -> Vec<PathBuf> {
        let folders = FOLDERS.map(|it| Path::new(it).join(self.node.name()));
        let entries = folders.into_iter().filter_map(|it| fs::read_dir(it).ok());
        let paths = entries.flatten().flatten().map(|entry| entry.path());
        paths
            .filter(|path| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with("10.")
            })
            .collect()
    }
}

/// The folders of two configurations, in each order.
const CHANGES: [[Option<&str>; 2]; 4] = [
    [None, Some(LEASES_DIR)],
    [Some(FOLDERS[0]), Some(LEASES_DIR)],
    [Some(LEASES_DIR), None],
    [Some(LEASES_DIR), Some(FOLDERS[0])],
];

#[test]
fn del_with_the_list_of_add_returns_an_address_whose_lease_was_moved_since() -> Result<()> {
    for [old, new] in CHANGES {
        let shared = SharedFolders::new()?;
        let node = &shared.node;
        let (early, late) = (node.pod("early")?, node.pod("late")?);
        let add = shared.with(node.call("ADD", "early", Some(&early)), old);
        let result = add.run()?.success()?;
        // The first call with the new list moves leases, if they are to be moved.
        let add = shared.with(node.call("ADD", "late", Some(&late)), new);
        add.run()?.success()?;
        ensure!(shared.leases().len() == 2, "{:?}", shared.leases());

        let check = shared.with(node.call("CHECK", "early", Some(&early)), old);
        check.with("prevResult", result.clone()).run()?.success()?;
        for previous in [result, Value::Null] {
            let del = shared.with(node.call("DEL", "early", None), old);
            del.with("prevResult", previous).run()?.success()?;
            ensure!(shared.leases().len() == 1, "{:?}", shared.leases());
        }
        // With the list that it was not added with.
        let del = shared.with(node.call("DEL", "late", None), old);
        del.run()?.success()?;
        ensure!(shared.leases().is_empty(), "{:?}", shared.leases());
    }
    Ok(())
}

#[test]
fn gc_returns_the_addresses_of_stale_pods_wherever_their_leases_are() -> Result<()> {
    for [old, new] in CHANGES {
        let shared = SharedFolders::new()?;
        let node = &shared.node;
        let pods = [node.pod("stale")?, node.pod("keep")?];
        for (pod, (id, folder)) in pods.iter().zip([("stale", old), ("keep", new)]) {
            let add = shared.with(node.call("ADD", id, Some(pod)), folder);
            add.run()?.success()?;
        }
        let keep = json!([{"containerID": "keep", "ifname": "eth0"}]);
        shared.with(gc(node, keep), old).run()?.success()?;
        let leases = shared.leases();
        ensure!(leases.len() == 1, "{leases:?}");
        ensure!(fs::read_to_string(&leases[0])?.starts_with("keep"));
        shared.with(gc(node, json!([])), old).run()?.success()?;
        ensure!(shared.leases().is_empty(), "{:?}", shared.leases());
    }
    Ok(())
}

#[test]
fn gc_tries_to_return_every_address_even_if_host_local_refuses_the_first() -> Result<()> {
    let shared = SharedFolders::new()?;
    let node = &shared.node;
    let ids = ["one", "two"];
    let pods = [node.pod(ids[0])?, node.pod(ids[1])?];
    for (id, pod) in ids.into_iter().zip(&pods) {
        let add = shared.with(node.call("ADD", id, Some(pod)), Some(LEASES_DIR));
        add.run()?.success()?;
    }
    let called = node.folder().join("called");
    let script = format!(
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = DEL ] || exec {PLUGINS}/host-local\n\
         echo \"$CNI_CONTAINERID $(cat)\" >> {}\nexit 1\n",
        called.display()
    );
    let folder = node.folder().join("plugins");
    fs::create_dir_all(&folder)?;
    let plugin = folder.join("host-local");
    fs::write(&plugin, script)?;
    fs::set_permissions(&plugin, Permissions::from_mode(0o755))?;
    let gc = shared.with(gc(node, json!([])), None);
    let gc = gc.env("CNI_PATH", &folder.display().to_string());
    ensure!(!gc.run()?.success, "the leases that stay are no error");
    let called = fs::read_to_string(called)?;
    for id in ids {
        let tried = |line: &str| line.starts_with(id) && line.contains(LEASES_DIR);
        ensure!(called.lines().any(tried), "{id}: {called}");
    }
    Ok(())
}
