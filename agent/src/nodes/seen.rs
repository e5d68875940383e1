//! The realms of the nodes as this node sees them: what probes have shown, and where they show nothing, what was stated. Pure.

use super::inventory::{Inventory, Node};
use crate::paths::uses::Uses;
use ipip_abi::Candidate;
use std::net::Ipv4Addr;

/// The realm of nodes that were stated to be in this node's realm, or to have none like this node, but that it reaches by
/// their public endpoints only. No label of Kubernetes and no name in an inventory file has a slash.
pub const ELSEWHERE: &str = "/elsewhere";

/// The inventory as the node `own` sees it. Nodes of one named realm are in one. Any other peer is in its realm if a private path
/// leads to it. Nodes without a realm could be anywhere: until a probe has shown it, such a peer is in another realm, unless
/// `can_probe` says that no probe can, and no other node has its InternalIP.
pub fn from(
    own: &Node,
    inventory: &Inventory,
    uses: &Uses,
    can_probe: impl Fn(&Node) -> bool,
) -> Inventory {
    let mut seen = inventory.clone();
    let belongs_to_older = |node: &Node| {
        let shared = |ip| inventory.shared_internal_ips.get(ip);
        let mut owners = node.internal_ips.first().and_then(shared).into_iter();
        owners.any(|it| *it != node.name)
    };
    for node in seen.nodes.iter_mut().filter(|it| it.name != own.name) {
        let path = uses.get(&node.name).and_then(|it| it.path);
        let path = path.filter(|it| has_address(node, it.address));
        let is_stated = node.realm == own.realm;
        let is_near = match path {
            _ if is_stated && !own.realm.is_empty() => true,
            Some(path) => !path.is_public(),
            None => is_stated && !can_probe(node) && !belongs_to_older(node),
        };
        if is_near && !is_stated {
            node.realm.clone_from(&own.realm);
        } else if is_stated && !is_near {
            node.realm = ELSEWHERE.into();
        }
        // `direct` is used only where it was asked for.
        let is_found = path.is_some_and(|it| it.number != Candidate::Direct);
        node.is_found_near = is_near && is_found && (own.realm.is_empty() || !is_stated);
    }
    seen
}

fn has_address(node: &Node, address: Ipv4Addr) -> bool {
    node.internal_ips.contains(&address) || node.public_endpoint == Some(address)
}

/// Whether the two nodes were stated to be in different realms.
pub fn is_stated_elsewhere(own: &Node, peer: &Node) -> bool {
    !own.realm.is_empty() && !peer.realm.is_empty() && own.realm != peer.realm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nodes::inventory::parse,
        paths::{candidate::Candidate, uses::Use},
    };
    use ipip_abi::Candidate as Number;
    /// Whether `own`, whose realm is the first one, sees a peer of the second one in its own realm.
    fn is_near(own: &str, peer: &str, path: Option<Number>, can_probe: bool) -> bool {
        let text = format!(
            "nodes:\n- {{name: own, internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], realm: {own:?}}}\n- {{name: peer, internalIPs: [10.0.0.2], podCIDRs: [10.42.2.0/24], realm: {peer:?}}}\n"
        );
        let inventory = parse(&text, "own", None).unwrap();
        let path = path.map(|number| Candidate {
            number,
            address: Ipv4Addr::new(10, 0, 0, 2),
        });
        let shown = Use {
            path,
            ..Use::default()
        };
        let uses = Uses::from([("peer".into(), shown)]);
        let own = inventory.node("own").unwrap();
        let seen = from(own, &inventory, &uses, |_| can_probe);
        assert_eq!(seen.node("own"), Some(own));
        seen.node("peer").unwrap().realm == own.realm
    }

    #[test]
    fn the_path_in_use_decides_whether_a_peer_is_in_the_own_realm() {
        for (own, peer) in [("", ""), ("a", "b"), ("", "b"), ("a", "")] {
            for (path, expected) in [
                (Number::PrivateIpip, true),
                (Number::PrivateUdp, true),
                (Number::Direct, true),
                (Number::PublicIpip, false),
                (Number::PublicUdp, false),
            ] {
                assert_eq!(is_near(own, peer, Some(path), true), expected);
            }
        }
    }

    #[test]
    fn without_a_proven_path_only_a_common_realm_or_a_peer_that_cannot_be_probed_is_trusted() {
        assert!(is_near("a", "a", Some(Number::PublicUdp), true));
        for (own, peer, can_probe, expected) in [
            ("a", "a", true, true),
            ("a", "a", false, true),
            ("", "", true, false),
            ("", "", false, true),
            ("a", "b", true, false),
            ("a", "b", false, false),
            ("", "b", false, false),
        ] {
            assert_eq!(is_near(own, peer, None, can_probe), expected);
        }
    }
}
