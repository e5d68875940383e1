//! Pins of a test's own.

use ipip_datapath::{Pins, remove};
use std::sync::atomic::{AtomicU32, Ordering};

/// Pins that are removed when the test ends.
pub struct Scratch(pub Pins);

impl Scratch {
    /// Pins that no other test has; nothing is there yet.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = format!("/sys/fs/bpf/ipip-pinned-{}-{number}", std::process::id());
        Self(Pins::new(root))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = remove(&self.0);
        if !std::thread::panicking() {
            removed.expect("the test's pins can be removed");
        }
    }
}
