//! The problems of foreign routes: routes of other programs that concern ours.

use crate::{
    other_networks::table,
    problems::{Problem, Reason},
    reconcile::{
        host_route::ForeignRoute,
        plan::{Conflict, ConflictKind},
    },
};
use ipip_datapath::interface_name;

/// The problem of each conflict that an operator should correct.
pub fn problems(conflicts: &[Conflict]) -> Vec<Problem> {
    conflicts.iter().filter_map(problem).collect()
}

fn problem(conflict: &Conflict) -> Option<Problem> {
    let link = conflict.route.oif.and_then(interface_name);
    let text = text(conflict, link.as_deref())?;
    Some(Problem::new(Reason::ForeignRoute, text))
}

/// The text; `None` if the route has no effect and belongs to a network whose leftovers are reported together.
fn text(conflict: &Conflict, link: Option<&str>) -> Option<String> {
    let Conflict { key, route, kind } = conflict;
    let network = link.and_then(table::of_link);
    let remedy = match network {
        Some(network) => format!("`ipip-agent prepare --clean-up-after {}`", network.name),
        None => format!("`ip route del {}`", command(conflict, link)),
    };
    let route = description(route, link);
    let destination = key.destination;
    let text = match kind {
        ConflictKind::OursIsFirst if network.is_some() => return None,
        ConflictKind::OursIsFirst => format!(
            "a route to {destination}, the pods of a peer, is not ours ({route}); ours comes first; remedy: {remedy}"
        ),
        ConflictKind::TheirsIsLonger => format!(
            "a route to {destination}, a part of the pods of a peer, is not ours ({route}): packets of this host and of Services follow it; remedy: if those pods are not there, {remedy}"
        ),
        ConflictKind::TheirsStays => format!(
            "a route to {destination}, the InternalIP of a peer, is not ours ({route}), so ours is not set; remedy: {remedy}, or correct the inventory"
        ),
    };
    Some(text)
}

/// The route in the notation of `ip route`.
fn description(route: &ForeignRoute, link: Option<&str>) -> String {
    let mut words = Vec::new();
    words.extend(route.gateway.map(|gateway| format!("via {gateway}")));
    words.extend(link.map(|link| format!("dev {link}")));
    words.push(format!("proto {}", route.protocol));
    words.join(" ")
}

/// The arguments with which `ip route del` deletes exactly this route.
fn command(conflict: &Conflict, link: Option<&str>) -> String {
    let key = conflict.key;
    let metric = match key.metric {
        0 => String::new(),
        metric => format!(" metric {metric}"),
    };
    let route = description(&conflict.route, link);
    format!("{} {route}{metric}", key.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::host_route::HostRouteKey;

    fn conflict(kind: ConflictKind) -> Conflict {
        let destination = "10.42.3.0/24".parse().unwrap();
        Conflict {
            key: HostRouteKey::best(destination),
            route: ForeignRoute {
                protocol: 3,
                oif: Some(7),
                gateway: Some("10.0.0.12".parse().unwrap()),
                is_first: false,
            },
            kind,
        }
    }

    #[test]
    fn each_text_names_route_and_device_and_a_command_that_removes_it() {
        for kind in [
            ConflictKind::OursIsFirst,
            ConflictKind::TheirsIsLonger,
            ConflictKind::TheirsStays,
        ] {
            let text = text(&conflict(kind), Some("eth0")).unwrap();
            let command = "`ip route del 10.42.3.0/24 via 10.0.0.12 dev eth0 proto 3`";
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn a_route_of_a_known_network_behind_ours_is_reported_with_its_network() {
        assert_eq!(
            text(&conflict(ConflictKind::OursIsFirst), Some("flannel.1")),
            None
        );
        let longer = text(&conflict(ConflictKind::TheirsIsLonger), Some("flannel.1")).unwrap();
        assert!(longer.contains("--clean-up-after flannel"), "{longer}");
    }
}
