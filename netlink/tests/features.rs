//! Features of interfaces. Needs root.

use ipip_netlink::{Features, Netlink, Veth};
use ipip_testkit::test_ns::TestNs;

#[test]
fn a_feature_is_turned_off_and_on_by_its_name() {
    const TUNNEL: &str = "tx-udp_tnl-segmentation";
    let ns = TestNs::new();
    let mut netlink = Netlink::open_in(&ns).unwrap();
    let veth = Veth {
        name: "one",
        peer_name: "other",
        ..Veth::default()
    };
    netlink.add_veth(&veth).unwrap();
    let index = netlink.link("one").unwrap().unwrap().index;
    let mut features = Features::open_in(&ns).unwrap().unwrap();
    let before = features.active(index).unwrap();
    assert!(before.iter().any(|it| it == TUNNEL), "{before:?}");
    let off = features.turn_off(index, |it| it == TUNNEL).unwrap();
    assert_eq!(off, [TUNNEL]);
    let without: Vec<_> = before.iter().filter(|it| *it != TUNNEL).collect();
    let now = features.active(index).unwrap();
    assert_eq!(now.iter().collect::<Vec<_>>(), without);
    features.set(index, &[TUNNEL], true).unwrap();
    assert_eq!(features.active(index).unwrap(), before);
    let unknown = features.set(index, &["no-such-feature"], true).unwrap_err();
    assert!(unknown.to_string().contains("name"), "{unknown}");
}
