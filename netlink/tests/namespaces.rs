//! Network namespaces, and kernel settings in them.

use ipip_netlink::{Error, NetNs, set_sysctl, sysctl};
use ipip_testkit::test_ns::TestNs;
use std::{fs, path::PathBuf, process::Command};

/// The path under which `ip netns` knows a namespace.
fn named(name: &str) -> PathBuf {
    format!("/run/netns/{name}").into()
}

#[test]
fn a_created_namespace_is_one_that_ip_netns_lists_and_enters() {
    let ns = TestNs::new();
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed
            .lines()
            .any(|line| line.split(' ').next() == Some(ns.name()))
    );
    let entered = Command::new("ip")
        .args(["netns", "exec", ns.name(), "ip", "-o", "link"])
        .output()
        .unwrap();
    let links = String::from_utf8(entered.stdout).unwrap();
    assert_eq!(links.lines().count(), 1, "only lo: {links}");
}

#[test]
fn a_second_namespace_of_one_name_is_refused_and_the_first_stays() {
    let ns = TestNs::new();
    let error = NetNs::create(ns.name()).unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    let first = NetNs::open(named(ns.name())).unwrap();
    assert!(first.is_same_as(&ns).unwrap());
}

#[test]
fn a_name_that_leaves_the_folder_is_refused() {
    for name in ["", ".", "..", "a/b", "../x"] {
        assert!(matches!(
            NetNs::create(name),
            Err(Error::NamespaceName { .. })
        ));
    }
}

#[test]
fn a_file_that_is_no_namespace_is_refused() {
    assert!(matches!(
        NetNs::open("/etc/passwd"),
        Err(Error::NotANamespace { .. })
    ));
    assert!(
        NetNs::open(named("ipip-nl-never-made"))
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn run_enters_the_namespace_and_leaves_the_caller_in_its_own() {
    let ns = TestNs::new();
    let before = NetNs::current().unwrap();
    let inside = ns.run(|| NetNs::current().unwrap()).unwrap();
    assert!(inside.is_same_as(&ns).unwrap());
    assert!(NetNs::current().unwrap().is_same_as(&before).unwrap());
    assert!(!before.is_same_as(&ns).unwrap());
}

#[test]
#[should_panic(expected = "inside")]
fn a_panic_inside_a_namespace_reaches_the_caller() {
    TestNs::new().run(|| panic!("inside")).unwrap();
}

#[test]
fn many_namespaces_are_created_at_once_without_stacking_mounts() {
    let mounts = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some("/run/netns"))
            .count()
    };
    drop(TestNs::new());
    let before = mounts();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(TestNs::new);
        }
    });
    assert_eq!(mounts(), before);
}

#[test]
fn settings_are_those_of_the_namespace() {
    let ns = TestNs::new();
    ns.sh("ip link add v0.7 type veth peer name v1");
    ns.run(|| {
        set_sysctl("net.ipv4.conf.v0.7.rp_filter", "2").unwrap();
        assert_eq!(sysctl("net.ipv4.conf.v0.7.rp_filter").unwrap(), "2");
    })
    .unwrap();
    let error = sysctl("net.ipv4.conf.v0.7.rp_filter").unwrap_err();
    assert!(error.is_not_found(), "{error}");
}
