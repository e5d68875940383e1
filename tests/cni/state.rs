//! Broken state folders of the plugin and of its IPAM plugin.

use anyhow::{Result, ensure};
use ipip_testkit::{cni_node::CniNode, shell};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A mounted tmpfs. Dropping it unmounts it.
struct Mounted(PathBuf);

impl Mounted {
    fn on(folder: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let folder_name = folder.display();
        shell::run(&format!("mount -t tmpfs -o {options} none {folder_name}"))?;
        Ok(Self(folder.into()))
    }

    fn again(&self, options: &str) -> Result<()> {
        let folder = self.0.display();
        shell::run(&format!("mount -o remount,{options} {folder}")).map(drop)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = shell::run(&format!("umount {}", self.0.display())) {
            eprintln!("{error:#}");
        }
    }
}

#[test]
fn on_a_full_disk_add_fails_clearly_and_nothing_is_lost() -> Result<()> {
    let node = CniNode::ready()?;
    let (one, two) = (node.pod("one")?, node.pod("two")?);
    let disk = Mounted::on(&node.folder().join("ipam"), "size=64k")?;
    let first = node.add("c1", &one)?;
    let before = node.traces()?;
    let hog = node.folder().join("ipam/hog");
    // The write fails when the disk is full.
    ensure!(fs::write(&hog, vec![1; 1 << 20]).is_err());
    let add = node.call("ADD", "c2", Some(&two));
    let outcome = add.run()?;
    let code = outcome.printed["code"].as_u64().unwrap_or_default();
    outcome.failure(code, &["host-local", "no space left"])?;
    fs::remove_file(&hog)?;
    // GC finds a lease that is half written.
    crate::gc::gc(
        &node,
        serde_json::json!([{"containerID": "c1", "ifname": "eth0"}]),
    )
    .run()?
    .success()?;
    ensure!(node.traces()? == before, "{:?}", node.traces()?);
    let check = node.call("CHECK", "c1", Some(&one));
    check.with("prevResult", first).run()?.success()?;
    node.del("c1")?;
    node.expect_no_trace()?;
    drop(disk);
    Ok(())
}

#[test]
fn with_a_read_only_state_directory_add_fails_clearly_and_del_works_once_it_is_writable()
-> Result<()> {
    let node = CniNode::ready()?;
    let (one, two) = (node.pod("one")?, node.pod("two")?);
    for (folder, named) in [("ipam", "host-local"), ("run", "runDir")] {
        let disk = Mounted::on(&node.folder().join(folder), "size=64k")?;
        let first = node.add("c1", &one)?;
        let before = node.traces()?;
        disk.again("ro")?;
        let outcome = node.call("ADD", "c2", Some(&two)).run()?;
        let code = outcome.printed["code"].as_u64().unwrap_or_default();
        outcome.failure(code, &[named, "ead-only file system"])?;
        ensure!(node.traces()? == before);
        // DEL removes everything that it can remove, and reports the rest.
        let del = node.call("DEL", "c1", Some(&one));
        let outcome = del.with("prevResult", first).run()?;
        outcome.failure(
            outcome.printed["code"].as_u64().unwrap_or_default(),
            &["writable"],
        )?;
        let left = node.traces()?;
        ensure!(left.iter().all(|it| it.starts_with("lease")), "{left:?}");
        disk.again("rw")?;
        node.del("c1")?;
        node.expect_no_trace()?;
        drop(disk);
    }
    Ok(())
}

#[test]
fn corrupt_state_files_harm_nothing() -> Result<()> {
    let node = CniNode::ready()?;
    let (one, two) = (node.pod("one")?, node.pod("two")?);
    let first = node.add("c1", &one)?;
    fs::write(node.leases().join("last_reserved_ip.0"), "\0garbage\n")?;
    fs::write(node.leases().join("10.42.9.9"), "\u{fffd}garbage")?;
    fs::write(node.folder().join("run/cni.lock"), "\0garbage")?;
    let second = node.add("c2", &two)?;
    ensure!(first["ips"] != second["ips"], "{first} {second}");
    node.del("c1")?;
    node.del("c2")?;
    let left = node.traces()?;
    ensure!(left == ["lease 10.42.9.9"], "{left:?}");
    Ok(())
}
