//! Places that the plugin and its IPAM plugin write to, broken.

use anyhow::{Result, ensure};
use ipip_testkit::{cni_node::CniNode, shell};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A small file system of its own, unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn on(folder: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let place = folder.display();
        shell::run(&format!("mount -t tmpfs -o {options} none {place}"))?;
        Ok(Self(folder.into()))
    }

    fn again(&self, options: &str) -> Result<()> {
        let place = self.0.display();
        shell::run(&format!("mount -o remount,{options} {place}")).map(drop)
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
    // It is full when this fails.
    ensure!(fs::write(&hog, vec![1; 1 << 20]).is_err());
    let add = node.call("ADD", "c2", Some(&two));
    let outcome = add.run()?;
    let code = outcome.printed["code"].as_u64().unwrap_or_default();
    outcome.failure(code, &["host-local", "no space left"])?;
    fs::remove_file(&hog)?;
    // What a half-written lease would be is found by GC, not lost.
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
        // DEL does what it can and tells what it could not.
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
