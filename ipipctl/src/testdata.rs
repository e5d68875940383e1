//! A node a1 with a reachable peer b1 and an unreachable one, c1.

use crate::{agent_report::AgentReport, names::Names};
use ipip_abi::{
    Addr, Config, Encapsulation, Flow, FlowKey, Mac, NodeAddr, Peer, PeerInfo, PeerState, Pod,
    Route, RouteKey,
};

pub fn names() -> Names {
    let interfaces = [(2, "eth0"), (3, "ipip0"), (9, "pod1")];
    let interfaces = interfaces.map(|(index, name)| (index, name.to_owned()));
    Names::new(&peer_info(), interfaces.into())
}

pub fn config() -> Config {
    Config {
        ipip0_ifindex: 3,
        ipip0_mac: mac(3),
        udp_port: 5555_u16.to_be_bytes(),
        flags: Config::FOREIGN_IPIP_PASS,
        events_per_second: 10,
        pod_mtu: 1480,
        pod_gso_max: 196_608,
        probe_address: Addr([10, 42, 1, 0]),
    }
}

pub fn pod() -> (Addr, Pod) {
    let pod = Pod {
        ifindex: 9,
        mac: mac(9),
        host_mac: mac(10),
        flags: 0,
    };
    (Addr([10, 42, 1, 5]), pod)
}

pub fn routes() -> [(RouteKey, Route); 3] {
    let route = |prefix, len, peer, kind| (RouteKey::new(prefix, len), Route::new(peer, kind));
    [
        route(Addr([10, 0, 0, 21]), 32, 1, Route::NODE),
        route(Addr([10, 42, 2, 0]), 24, 1, Route::PODS),
        route(Addr([10, 42, 3, 0]), 24, 7, 9),
    ]
}

pub fn peers() -> [(u16, Peer); 2] {
    let known = Peer {
        underlay: Addr([203, 0, 113, 21]),
        source: Addr([10, 0, 0, 11]),
        ifindex: 2,
        mtu: 1480,
        encapsulation: Encapsulation::Ipip as u8,
        flags: Peer::MAC_KNOWN | Peer::PUBLIC,
        next_hop_mac: mac(1),
        uplink_mac: mac(2),
        header_sum: 0,
    };
    let unknown = Peer {
        ifindex: 77,
        encapsulation: 200,
        flags: 0,
        ..known
    };
    [(1, known), (7, unknown)]
}

pub fn peer_info() -> [(u16, PeerInfo); 3] {
    let info = |name, state, notes| PeerInfo::new(name, state as u8, notes);
    [
        (0, info("a1", PeerState::OwnNode, 0)),
        (1, info("b1", PeerState::Reachable, 0)),
        (
            2,
            info(
                "c1",
                PeerState::NoPublicEndpoint,
                PeerInfo::INTERNAL_IP_SHARED,
            ),
        ),
    ]
}

pub fn node_addr() -> (Addr, NodeAddr) {
    let roles = NodeAddr::OWN | NodeAddr::UNDERLAY;
    (Addr([10, 0, 0, 11]), NodeAddr::new(0, roles))
}

/// Two flows: one whose source is the lower address, one whose source is the higher address.
pub fn flows() -> [(FlowKey, Flow); 2] {
    let (pod, service) = (Addr([10, 42, 1, 5]), Addr([10, 42, 2, 7]));
    let port = |port: u16| port.to_be_bytes();
    let (there, from_low) = FlowKey::canonical(pod, port(40_000), service, port(80), 6);
    let (back, from_high) = FlowKey::canonical(service, port(53), pod, port(40_001), 17);
    let flow = Flow::new;
    [(there, flow(from_low)), (back, flow(from_high))]
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// The tables in which `dump` shows these entries.
pub const TABLES: &str = "\
IPIP0 IFINDEX  IPIP0 INTERFACE  IPIP0 MAC          UDP PORT  FOREIGN IPIP  EVENTS PER SECOND  POD MTU  POD GSO MAX  PROBE ADDRESS
            3  ipip0            02:00:00:00:00:03      5555  pass                         10     1480       196608  10.42.1.0
ADDRESS    IFINDEX  INTERFACE  MAC                HOST MAC           LIMITED
10.42.1.5        9  pod1       02:00:00:00:00:09  02:00:00:00:00:0a  no
PREFIX        KIND        PEER  NODE
10.0.0.21/32  node           1  b1
10.42.2.0/24  pods           1  b1
10.42.3.0/24  unknown(9)     7  -
PEER  NODE  ENCAPSULATION  UNDERLAY      SOURCE     IFINDEX  UPLINK  UPLINK MAC         NEXT HOP MAC        MTU  PUBLIC
   1  b1    ipip           203.0.113.21  10.0.0.11        2  eth0    02:00:00:00:00:02  02:00:00:00:00:01  1480  yes
   7  -     unknown(200)   203.0.113.21  10.0.0.11       77  -       02:00:00:00:00:02  -                  1480  no
PEER  NODE  STATE             WHY
   0  a1    OwnNode           this node
   1  b1    Reachable         reachable
   2  c1    NoPublicEndpoint  the peer is in another realm and has no publicEndpoint: set one for it; another node has the same InternalIP and keeps it
ADDRESS    PEER  NODE  ROLES
10.0.0.11     0  a1    own underlay
PROTOCOL  SOURCE     SOURCE PORT  DESTINATION  DESTINATION PORT
tcp       10.42.1.5        40000  10.42.2.7                  80
udp       10.42.2.7           53  10.42.1.5               40001
";

/// A report of a running agent with one problem.
pub fn agent_report() -> AgentReport {
    serde_json::from_value(serde_json::json!({
        "running": true,
        "agentVersion": "0.1.0",
        "ready": false,
        "problems": [{
            "reason": "NotInSync",
            "text": "cannot write the route; remedy: look at it",
            "since": 1_764_112_000,
            "blocks": true,
        }],
        "repairs": {"Sysctl": 2},
    }))
    .unwrap()
}
