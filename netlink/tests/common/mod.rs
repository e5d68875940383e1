//! A network namespace for one test, removed when the test ends.

use ipip_netlink::NetNs;
use std::{
    ops::Deref,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A named namespace that is deleted when dropped.
pub struct TestNs {
    ns: NetNs,
    pub name: String,
}

impl TestNs {
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test creates network namespaces: run it as root"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipip-nl-{}-{count}", process::id());
        let ns = NetNs::create(&name).unwrap();
        Self { ns, name }
    }

    /// Runs a program in the namespace and returns what it prints.
    pub fn sh(&self, command: &str) -> String {
        let output = self
            .run(|| Command::new("sh").args(["-c", command]).output())
            .unwrap()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Deref for TestNs {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.ns
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        NetNs::delete(&self.name).unwrap();
    }
}
