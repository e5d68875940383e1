//! What the agent writes into the maps of probes, in the kernel.

use ipip_abi::{
    Addr, Candidate, Encapsulation,
    probe::{ProbeSecret, ProbeState, candidate_index},
};
use ipip_agent::{
    config::{Config, Origin, validate},
    nodes::inventory,
    probe_key::{PrivateKey, Secrets},
    reconcile::reconciler::{Outcome, Reconciler},
};
use ipip_datapath::{Maps, Pins};
use ipip_netlink::Changes;
use ipip_testkit::test_ns::TestNs;
use std::{fs, net::Ipv4Addr, path::PathBuf};
use tempfile::TempDir;

/// A simulated host of the node a1, whose default route leads through its only uplink.
struct Host {
    netns: TestNs,
    folder: TempDir,
    own: PrivateKey,
}

impl Host {
    fn new() -> Self {
        Self {
            netns: TestNs::host(),
            folder: TempDir::new().unwrap(),
            own: PrivateKey::from([1; 32]),
        }
    }

    fn pin_root(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf").join(self.netns.name())
    }

    fn config(&self) -> Config {
        let state_dir = self.folder.path().join("state");
        let text = |path: PathBuf| (path.display().to_string(), Origin::Default);
        let texts = [
            ("pinRoot", text(self.pin_root())),
            ("stateDir", text(state_dir)),
        ];
        validate(texts.into(), "a1").unwrap()
    }

    /// A new agent reconciles a1 with this peer.
    fn reconcile(&self, peer: &str) {
        let text = format!(
            "nodes:\n- {{name: a1, internalIPs: [10.0.0.11], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.11}}\n{peer}"
        );
        let inventory = inventory::parse(&text, "a1", None).unwrap();
        let reconcile = || {
            let mut reconciler = Reconciler::start(self.config(), Some(self.own.clone())).unwrap();
            reconciler.set_inventory(inventory);
            // The second time, the routes of the first one are there.
            for _ in 0..2 {
                let outcome = reconciler.reconcile(Changes::EVERYTHING).unwrap();
                assert_eq!(outcome, Outcome::Complete);
            }
        };
        self.netns.run(reconcile).unwrap();
    }

    fn maps(&self) -> Maps {
        Maps::open(&Pins::new(self.pin_root())).unwrap()
    }

    fn secret_with(&self, peer: &PrivateKey) -> ProbeSecret {
        let mut secrets = Secrets::new("a1", Some(self.own.clone()));
        secrets.set_peers([("b1", peer.public())]);
        ProbeSecret {
            address: Addr([10, 42, 2, 0]),
            ..secrets.with("b1", peer.public()).unwrap()
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.pin_root());
    }
}

/// The node b1 with this key and realm.
fn b1(key: &PrivateKey, realm: &str) -> String {
    format!(
        "- {{name: b1, internalIPs: [10.1.0.21], podCIDRs: [10.42.2.0/24], publicEndpoint: 198.51.100.21, realm: {realm:?}, probeKey: {}}}\n",
        key.public()
    )
}

#[test]
fn secrets_and_candidates_follow_the_peer_and_a_new_key_forgets_its_probes() {
    let host = Host::new();
    let (first, second) = (PrivateKey::from([2; 32]), PrivateKey::from([3; 32]));
    host.reconcile(&b1(&first, ""));
    let mut maps = host.maps();
    assert_eq!(
        maps.config.get(&0, 0).unwrap().probe_address,
        Addr([10, 42, 1, 0])
    );
    assert_eq!(
        maps.probe_secrets.get(&1, 0).unwrap(),
        host.secret_with(&first)
    );
    let (private, public) = (Addr([10, 1, 0, 21]), Addr([198, 51, 100, 21]));
    let all = [
        (Candidate::PrivateIpip, private, Encapsulation::Ipip),
        (Candidate::PrivateUdp, private, Encapsulation::Udp),
        (Candidate::PublicIpip, public, Encapsulation::Ipip),
        (Candidate::PublicUdp, public, Encapsulation::Udp),
    ];
    for (candidate, underlay, encapsulation) in all {
        let index = candidate_index(1, candidate as u8);
        let path = maps.candidates.get(&index, 0).unwrap();
        assert_eq!(
            (path.underlay, path.encapsulation),
            (underlay, encapsulation as u8)
        );
        assert_eq!(path.source, Addr([10, 0, 0, 11]));
    }

    let probed = ProbeState {
        asked: 7,
        ..ProbeState::default()
    };
    let index = candidate_index(1, Candidate::PublicUdp as u8);
    maps.probe_states.set(index, probed, 0).unwrap();
    host.reconcile(&b1(&first, ""));
    assert_eq!(
        maps.probe_states.get(&index, 0).unwrap(),
        probed,
        "another agent"
    );

    host.reconcile(&b1(&second, ""));
    assert_eq!(
        maps.probe_secrets.get(&1, 0).unwrap(),
        host.secret_with(&second)
    );
    let forgotten = maps.probe_states.get(&index, 0).unwrap();
    assert_eq!(forgotten.asked, 0);
    assert_ne!(forgotten.answered, 0, "no recorded answer is taken");

    // An address that changes is no new key.
    maps.probe_states.set(index, probed, 0).unwrap();
    host.reconcile(&b1(&second, "").replace("10.42.2.0", "10.42.9.0"));
    let secret = maps.probe_secrets.get(&1, 0).unwrap();
    assert_eq!(secret.address, Addr([10, 42, 9, 0]));
    assert_eq!(maps.probe_states.get(&index, 0).unwrap(), probed);

    host.reconcile("");
    assert!(!maps.probe_secrets.get(&1, 0).unwrap().is_set());
    for (candidate, ..) in all {
        let index = candidate_index(1, candidate as u8);
        let path = maps.candidates.get(&index, 0).unwrap();
        assert_eq!(path, ipip_abi::Peer::default());
    }
}

/// The host has a route to this InternalIP through `ipip0`, which does not lead out.
#[test]
fn the_internal_ip_of_a_peer_in_a_named_realm_is_a_candidate_by_the_route_outside_of_the_tunnel() {
    let host = Host::new();
    host.reconcile(&b1(&PrivateKey::from([2; 32]), "b"));
    let maps = host.maps();
    let index = candidate_index(1, Candidate::PrivateIpip as u8);
    let path = maps.candidates.get(&index, 0).unwrap();
    assert_eq!(Ipv4Addr::from(path.underlay), Ipv4Addr::new(10, 1, 0, 21));
    assert_eq!(Ipv4Addr::from(path.source), Ipv4Addr::new(10, 0, 0, 11));
    let through = host
        .netns
        .run(|| ipip_netlink::Netlink::open()?.route_to([10, 1, 0, 21].into()));
    let through = through.unwrap().unwrap().unwrap();
    assert_ne!(through.oif, path.ifindex);
}
