//! A network namespace for one test.

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
    /// A namespace that no other test has; `of` is part of its name.
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
        // A test that failed has a more useful message already.
        if !thread::panicking() {
            deleted.expect("the test's namespace can be removed");
        }
    }
}
