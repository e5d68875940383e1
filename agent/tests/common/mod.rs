//! A network namespace of a test's own.

use ipip_netlink::NetNs;
use std::{
    ops::Deref,
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A named namespace that is deleted when dropped.
pub struct TestNs {
    netns: NetNs,
    pub name: String,
}

impl TestNs {
    /// One that no other test has; `of` says whose it is.
    pub fn new(of: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipip-{of}-{}-{number}", process::id());
        let netns = NetNs::create(&name).expect("a namespace (needs root)");
        Self { netns, name }
    }
}

impl Deref for TestNs {
    type Target = NetNs;

    fn deref(&self) -> &NetNs {
        &self.netns
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        let deleted = NetNs::delete(&self.name);
        // A failed test has said more already.
        if !thread::panicking() {
            deleted.expect("the test's namespace can be removed");
        }
    }
}
