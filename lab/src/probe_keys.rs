//! The keys of probes, which a lab knows before its agents run, so that the inventory file can have them.

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// The private key of a node: its name between dots, cut to 32 bytes. Nobody needs to keep it secret. X25519 ignores three
/// bits of the first byte (RFC 7748, section 5).
fn private(node: &str) -> [u8; 32] {
    let mut key = [b'.'; 32];
    let len = node.len().min(key.len() - 2);
    key[1..=len].copy_from_slice(&node.as_bytes()[..len]);
    key
}

/// The public key of a node, as the inventory file has it.
pub fn public(node: &str) -> String {
    let secret = StaticSecret::from(private(node));
    STANDARD.encode(PublicKey::from(&secret).as_bytes())
}

/// Writes the private key of a node where its agent looks for it.
pub fn write(node: &str, run_dir: &Path) -> Result<()> {
    fs::create_dir_all(run_dir)?;
    let path = run_dir.join("probe.key");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    // An agent makes a new key in place of one of an earlier boot.
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    file.and_then(|mut file| file.write_all(&[&private(node)[..], &boot].concat()))
        .with_context(|| format!("cannot write {}", path.display()))
}
