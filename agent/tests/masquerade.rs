//! The agent's nftables table, checked with `nft` and with packets.

use ipip_agent::host::masquerade::Masquerade;
use ipip_testkit::test_ns::{TestNs, drop_capabilities};
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// The output of `nft` for a node with two pod ranges.
const TABLE: &str = "\
table ip ipip {
\tchain postrouting {
\t\tcomment \"ipip: SNAT for pod egress and for host-to-peer traffic\"
\t\ttype nat hook postrouting priority srcnat - 1; policy accept;
\t\tip saddr 10.42.1.0/24 ip daddr != 10.42.1.0/24 ip daddr != 10.42.9.7 oifname != \"ipip0\" meta l4proto udp masquerade to :5556-65535 fully-random
\t\tip saddr 10.42.1.0/24 ip daddr != 10.42.1.0/24 ip daddr != 10.42.9.7 oifname != \"ipip0\" masquerade fully-random
\t\tip saddr 10.42.9.7 ip daddr != 10.42.1.0/24 ip daddr != 10.42.9.7 oifname != \"ipip0\" meta l4proto udp masquerade to :5556-65535 fully-random
\t\tip saddr 10.42.9.7 ip daddr != 10.42.1.0/24 ip daddr != 10.42.9.7 oifname != \"ipip0\" masquerade fully-random
\t}
}
";

/// The first rule of a node with the pods 10.42.9.7 and 10.42.9.8.
const FIRST_RULE: &str = "ip saddr 10.42.9.7 ip daddr != 10.42.9.7 ip daddr != 10.42.9.8 \
                          oifname != \"ipip0\" meta l4proto udp \
                          masquerade to :5556-65535 fully-random";

/// A table of another program.
const FOREIGN: &str = "table ip other { chain c { ip saddr 10.42.1.0/24 accept; }; }";

/// A host in its own network namespace.
struct NftHost(TestNs);

impl NftHost {
    fn new() -> Self {
        Self(TestNs::new())
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.0.run(f).unwrap()
    }

    fn sh(&self, script: &str) -> String {
        self.0.sh(script)
    }

    fn apply(&self, masquerade: &Masquerade) {
        self.run(|| masquerade.apply()).unwrap();
    }

    fn has(&self, masquerade: &Masquerade) -> bool {
        self.run(|| masquerade.is_in_place()).unwrap()
    }

    fn tables(&self) -> String {
        self.sh("nft list ruleset")
    }

    fn socket(&self, port: u16) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    }
}

fn pods(ranges: &[&str]) -> Masquerade {
    Masquerade {
        pods: ranges.iter().map(|it| it.parse().unwrap()).collect(),
        outside: true,
        own: Vec::new(),
        udp_port: 5555,
    }
}

fn none() -> Masquerade {
    Masquerade::default()
}

#[test]
fn nft_shows_the_expected_table() {
    let node = NftHost::new();
    node.apply(&pods(&["10.42.1.0/24", "10.42.9.7/32"]));
    assert_eq!(node.tables(), TABLE);
}

/// The kernel chooses among few ports, so that it would choose the tunnel's soon.
#[test]
fn a_source_port_is_never_that_of_the_tunnel() {
    let range = |udp_port| {
        let node = NftHost::new();
        let wanted = Masquerade {
            udp_port,
            ..pods(&["10.42.1.0/24"])
        };
        node.apply(&wanted);
        assert!(node.has(&wanted));
        let listed = node.tables();
        // What nft lists can be loaded again.
        let reloaded = "nft list ruleset > all; nft flush ruleset; nft -f all; rm all";
        node.sh(&format!("cd $(mktemp -d); {reloaded}"));
        assert_eq!(node.tables(), listed);
        let ports = listed.split("masquerade to :").nth(1).unwrap();
        ports.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(range(5555), "5556-65535");
    assert_eq!(range(61000), "1024-60999");
    assert_eq!(range(65535), "1024-65534");
    assert_eq!(range(80), "1024-65535");
}

#[test]
fn packets_into_the_tunnel_get_the_internal_ip_unless_peers_accept_their_source() {
    let node = NftHost::new();
    let wanted = Masquerade {
        outside: false,
        own: vec![[10, 0, 0, 11].into(), [10, 0, 1, 11].into()],
        ..pods(&["10.42.1.0/24"])
    };
    node.apply(&wanted);
    let rule = "ip saddr != 10.42.1.0/24 ip saddr != 10.0.0.11 ip saddr != 10.0.1.11 \
                oifname \"ipip0\" snat to 10.0.0.11";
    assert!(node.tables().contains(rule), "{}", node.tables());
    assert!(node.has(&wanted));
    assert!(!node.has(&pods(&["10.42.1.0/24"])));
}

#[test]
fn foreign_tables_are_not_touched() {
    let node = NftHost::new();
    node.sh(&format!("nft '{FOREIGN}'"));
    let before = node.tables();
    node.apply(&pods(&["10.42.1.0/24"]));
    assert!(node.tables().contains(before.trim_end()));
    node.apply(&none());
    assert_eq!(node.tables(), before);
}

#[test]
fn without_pods_the_table_is_removed_and_removing_it_again_is_no_error() {
    let node = NftHost::new();
    assert!(node.has(&none()));
    node.apply(&pods(&["10.42.1.0/24"]));
    assert!(!node.has(&none()));
    for _ in 0..2 {
        node.apply(&none());
        assert_eq!(node.tables(), "");
        assert!(node.has(&none()));
    }
}

#[test]
fn a_flushed_or_edited_table_is_noticed_and_restored() {
    let wanted = pods(&["10.42.9.7/32", "10.42.9.8/32"]);
    let chain = "ip ipip postrouting";
    let edits = [
        "nft flush ruleset".to_owned(),
        "nft flush table ip ipip".to_owned(),
        "nft add table ip ipip '{ flags dormant; }'".to_owned(),
        "nft add chain ip ipip another".to_owned(),
        "nft add set ip ipip s '{ type ipv4_addr; }'".to_owned(),
        "nft 'chain ip ipip postrouting { policy drop; }'".to_owned(),
        format!("nft add rule {chain} accept"),
        format!("nft insert rule {chain} ip saddr 10.42.1.1 return"),
        replace_first("ip saddr 10.42.9.7 masquerade fully-random"),
        replace_first(&FIRST_RULE.replacen("10.42.9.7", "10.42.9.9", 1)),
        replace_first(&FIRST_RULE.replace("!= 10.42.9.8", "10.42.9.8")),
        replace_first(&FIRST_RULE.replace("ipip0", "ipip1")),
        replace_first(&FIRST_RULE.replace("fully-random", "random")),
        replace_first(&FIRST_RULE.replace(":5556", ":5555")),
        replace_first(&FIRST_RULE.replace("masquerade to :5556-65535 fully-random", "accept")),
        "nft delete chain ip ipip postrouting
         nft 'table ip ipip { chain postrouting {
             type nat hook postrouting priority 101; }; }'"
            .to_owned(),
    ];
    for edit in &edits {
        let node = NftHost::new();
        node.apply(&wanted);
        let before = node.tables();
        assert!(node.has(&wanted));
        node.sh(edit);
        assert!(!node.has(&wanted), "{edit}");
        node.apply(&wanted);
        assert!(node.has(&wanted), "{edit}");
        assert_eq!(node.tables(), before, "{edit}");
    }
}

#[test]
fn a_rule_that_nft_replaced_by_an_equal_one_is_no_edit() {
    let wanted = pods(&["10.42.9.7/32", "10.42.9.8/32"]);
    let node = NftHost::new();
    node.apply(&wanted);
    node.sh(&replace_first(FIRST_RULE));
    assert!(node.has(&wanted));
}

#[test]
fn the_table_for_other_pods_is_not_the_wanted_one() {
    let node = NftHost::new();
    node.apply(&pods(&["10.42.1.0/24", "10.42.9.7/32"]));
    for other in [
        &["10.42.1.0/24"][..],
        &["10.42.9.7/32", "10.42.1.0/24"],
        &["10.42.1.0/25", "10.42.9.7/32"],
        &["10.42.1.0/24", "10.42.9.7/32", "10.42.2.0/24"],
    ] {
        assert!(!node.has(&pods(other)), "{other:?}");
    }
}

#[test]
fn a_replacement_is_atomic_for_readers() {
    let node = NftHost::new();
    let (one, two) = (pods(&["10.42.1.0/24"]), pods(&["10.42.2.0/24"]));
    node.apply(&one);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..100 {
                node.apply(&two);
                node.apply(&one);
            }
            end.store(true, Ordering::Relaxed);
        });
        let mut seen = 0;
        while !end.load(Ordering::Relaxed) {
            let shown = node.tables();
            assert_eq!(shown.matches("fully-random").count(), 2, "{shown}");
            seen += 1;
        }
        writer.join().unwrap();
        assert!(seen > 1);
    });
}

#[test]
fn pods_leave_with_the_nodes_address_but_not_to_pods_and_not_through_ipip0() {
    let (node, pod, outside) = (NftHost::new(), NftHost::new(), NftHost::new());
    // `far` is behind ipip0 like a peer. 10.42.1.3 is a pod address that is outside the cluster by mistake.
    node.sh(&format!(
        "ip link set lo up
         ip link add pod type veth peer name eth0 netns {pod}
         ip link add out type veth peer name eth0 netns {outside}
         ip link add ipip0 type veth peer name far netns {outside}
         ip address add 10.42.1.1/24 dev pod
         ip address add 192.0.2.1/24 dev out
         ip address add 198.51.100.1/24 dev ipip0
         for link in pod out ipip0; do ip link set $link up; done
         ip route add 10.42.1.3 via 192.0.2.2
         echo 1 > /proc/sys/net/ipv4/ip_forward",
        pod = pod.0.name(),
        outside = outside.0.name()
    ));
    pod.sh("ip address add 10.42.1.2/24 dev eth0
            ip link set eth0 up
            ip route add default via 10.42.1.1
            ip route add 10.42.1.3 via 10.42.1.1");
    outside.sh("ip link set lo up
                ip address add 192.0.2.2/24 dev eth0
                ip address add 198.51.100.2/24 dev far
                ip address add 10.42.1.3/32 dev lo
                ip link set eth0 up
                ip link set far up
                ip route add 10.42.1.0/24 via 192.0.2.1");
    node.apply(&pods(&["10.42.1.0/24"]));

    let sources = [
        ("192.0.2.2", "192.0.2.1"),
        ("198.51.100.2", "10.42.1.2"),
        ("10.42.1.3", "10.42.1.2"),
    ];
    let server = outside.socket(7000);
    for (destination, expected) in sources {
        let client = pod.socket(0);
        client.send_to(b"hello", (destination, 7000)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 16]).expect(destination);
        assert_eq!(
            from.ip(),
            expected.parse::<IpAddr>().unwrap(),
            "to {destination}"
        );
    }
}

#[test]
fn a_table_that_cannot_be_read_is_neither_in_place_nor_missing() {
    let node = NftHost::new();
    let wanted = pods(&["10.42.1.0/24"]);
    node.apply(&wanted);
    for wanted in [wanted, none()] {
        let outcome = node.run(|| {
            drop_capabilities();
            wanted.is_in_place()
        });
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("EPERM"), "{error}");
    }
}

/// A script that replaces the first rule.
fn replace_first(rule: &str) -> String {
    format!(
        "handle=$(nft -a list chain ip ipip postrouting | sed -n 's/.*saddr 10.*handle //p' | head -1)
         nft replace rule ip ipip postrouting handle $handle '{rule}'"
    )
}
