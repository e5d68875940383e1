//! What the inventory leaves out, for people: values that are invalid, or that belong to a node with an older claim. Pure.

use crate::{
    nodes::inventory::{Field, InvalidField, Inventory, Node},
    problems::{Problem, Reason},
};
use std::collections::BTreeSet;

/// The problems of this node's own claims.
pub fn problems(own: &Node, inventory: &Inventory) -> Vec<Problem> {
    let left_out = inventory.left_out.get(&own.name).into_iter().flatten();
    let mut problems: Vec<Problem> = left_out
        .map(|it| {
            let nothing_left = match it.field {
                Field::InternalIps => own.internal_ips.is_empty(),
                Field::PodCidrs => own.pod_cidrs.is_empty(),
                Field::Name | Field::PublicEndpoint | Field::Encapsulation | Field::ProbeKey => {
                    false
                }
            };
            let reason = if nothing_left {
                Reason::LeftOut
            } else {
                Reason::Contested
            };
            Problem::new(reason, it)
        })
        .collect();
    problems.extend(shared(own, inventory));
    problems.extend(held(inventory));
    problems
}

/// The problem that most peers disappeared together.
fn held(inventory: &Inventory) -> Option<Problem> {
    // Without numbers: the text of a problem that persists must not change.
    let text = "most IpipNodes were deleted within a short time: their nodes stay in use for five minutes after that, and no longer if their Node is deleted, too; remedy: if it was a mistake, apply the manifests again, and the agents write their objects";
    (!inventory.held.is_empty()).then(|| Problem::new(Reason::PeersHeld, text))
}

/// A problem for each InternalIP of this node that an older claim of another realm keeps from third realms.
fn shared(own: &Node, inventory: &Inventory) -> impl Iterator<Item = Problem> {
    own.internal_ips.iter().filter_map(|address| {
        let oldest = inventory.shared_internal_ips.get(address)?;
        let oldest = inventory.node(oldest).filter(|it| it.realm != own.realm)?;
        let text = format!(
            "internalIPs: {address} is also an InternalIP of {} in the realm {:?}, which claimed it first: outside of this node's realm it leads there, pods are not affected; remedy: if other realms need to reach this node itself, renumber one of the two",
            oldest.name, oldest.realm
        );
        Some(Problem::new(Reason::Contested, text))
    })
}

/// Whether this node has pod CIDRs and may use none of them.
pub fn lacks_pod_cidrs(own: &Node, inventory: &Inventory) -> bool {
    let mut left_out = inventory.fields_left_out(&own.name);
    own.pod_cidrs.is_empty() && left_out.any(|field| field == Field::PodCidrs)
}

/// What is left out of other nodes than `own`: the name of each node, and a text.
pub fn of_others(own: &str, inventory: &Inventory) -> BTreeSet<(String, String)> {
    let text = |node: &str, field: &InvalidField| (node.to_owned(), field.to_string());
    let others = inventory.left_out.iter().filter(|(node, _)| *node != own);
    others
        .flat_map(|(node, fields)| fields.iter().map(move |field| text(node, field)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::inventory;

    fn problems_of(text: &str) -> Vec<(Reason, String)> {
        let inventory = inventory::parse(text, "a1", None).unwrap();
        let problems = problems(inventory.node("a1").unwrap(), &inventory);
        let plain = problems.into_iter().map(|it| (it.reason, it.text));
        plain.collect()
    }

    #[test]
    fn a_node_is_not_ready_only_if_no_internal_ip_or_no_pod_cidr_is_left() {
        let older = "nodes:\n- {name: old, internalIPs: [10.0.0.1], podCIDRs: [10.42.1.0/24], publicEndpoint: 203.0.113.1}\n";
        for (claim, reason) in [
            (
                "internalIPs: [10.0.0.1, 10.0.0.2], podCIDRs: [10.42.2.0/24]",
                Reason::Contested,
            ),
            (
                "internalIPs: [10.0.0.2], podCIDRs: [10.42.2.0/24], publicEndpoint: 203.0.113.1",
                Reason::Contested,
            ),
            (
                "internalIPs: [10.0.0.1], podCIDRs: [10.42.2.0/24]",
                Reason::LeftOut,
            ),
            (
                "internalIPs: [10.0.0.2], podCIDRs: [10.42.1.0/25]",
                Reason::LeftOut,
            ),
        ] {
            let found = problems_of(&format!("{older}- {{name: a1, {claim}}}\n"));
            assert_eq!(found.len(), 1, "{claim}");
            assert_eq!(found[0].0, reason, "{claim}");
            assert!(found[0].1.contains("of old (line 2)"), "{found:?}");
        }
    }

    #[test]
    fn only_the_younger_of_two_nodes_of_two_realms_with_one_internal_ip_is_told() {
        let node = |name, realm, n| {
            format!(
                "- {{name: {name}, internalIPs: [10.0.0.1], podCIDRs: [10.42.{n}.0/24], realm: {realm}}}\n"
            )
        };
        let (own, other) = (node("a1", "a", 1), node("b1", "b", 2));
        let found = problems_of(&format!("nodes:\n{other}{own}"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, Reason::Contested);
        assert!(
            found[0]
                .1
                .contains("of b1 in the realm \"b\", which claimed it first")
        );
        assert_eq!(problems_of(&format!("nodes:\n{own}{other}")), []);
    }
}
