//! A network namespace for one test.

use crate::{scratch::unique_prefix, shell};
use ipip_netlink::{LinkChange, NetNs, Netlink};
use nix::libc;
use std::{ops::Deref, process::Command, thread};

/// A named network namespace that is deleted when dropped; also its [`NetNs`].
#[derive(Debug)]
pub struct TestNs {
    netns: NetNs,
    name: String,
}

impl TestNs {
    /// Makes a namespace with a unique name. Its loopback interface is down.
    ///
    /// # Panics
    /// The process is not root.
    #[expect(
        clippy::new_without_default,
        reason = "a default value should not change the system"
    )]
    pub fn new() -> Self {
        let name = unique_prefix();
        let netns = NetNs::create(&name).unwrap_or_else(|error| {
            panic!("cannot make a network namespace: {error}; remedy: run the test as root")
        });
        Self { netns, name }
    }

    /// Makes a namespace like a host with the address 10.0.0.11, whose default route leads through `eth0`.
    ///
    /// # Panics
    /// The process is not root, or there is no `ip`.
    pub fn host() -> Self {
        let host = Self::new();
        host.sh("ip link set lo up
                 ip link add eth0 type veth peer name far
                 ip address add 10.0.0.11/24 dev eth0
                 ip link set eth0 up
                 ip link set far up
                 ip route add default via 10.0.0.1");
        host
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the loopback interface up; over netlink, because the emulated machines have no `ip`.
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn loopback_up(&self) {
        let mut netlink = Netlink::open_in(&self.netns).unwrap();
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        netlink.change_link(lo, &up).unwrap();
    }

    /// Runs a shell script in the namespace, and returns what it prints.
    ///
    /// # Panics
    /// A command of the script fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", script]).output());
        let output = output.unwrap_or_else(|error| panic!("entering {}: {error}", self.name));
        shell::printed(script, output).unwrap_or_else(|error| panic!("{error:#}"))
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
        // A test that panics already reports a failure; a second panic would abort the process.
        if !thread::panicking() {
            deleted.unwrap_or_else(|error| panic!("cannot delete {}: {error}", self.name));
        }
    }
}

/// Drops the capabilities of the calling thread, and of no other thread of the process.
///
/// # Panics
/// The kernel refuses it.
pub fn drop_capabilities() {
    let nobody = 65534;
    // SAFETY: the call has no pointers. It changes the IDs of this thread, which ends soon.
    let done = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
    assert_eq!(done, 0);
}
