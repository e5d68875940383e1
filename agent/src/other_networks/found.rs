//! Recognises what another pod network has left on this host. Pure.

use super::table::{self, NETWORKS, Network};
use crate::problems::{Problem, Reason};
use ipip_netlink::{Address, Link, Route, RouteKind, Rule};
use std::{collections::BTreeSet, path::Path};

/// The state of the host in which leftovers are sought.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// All interfaces.
    pub links: &'a [Link],
    /// All IPv4 addresses.
    pub addresses: &'a [Address],
    /// The routes of the main table.
    pub routes: &'a [Route],
    /// The policy routing rules.
    pub rules: &'a [Rule],
    /// Paths of [`Network::pins`] that exist.
    pub pins: &'a [&'static str],
}

/// The pins of other networks that exist on this host.
pub fn pins() -> Vec<&'static str> {
    let all = NETWORKS.iter().flat_map(|network| network.pins);
    all.filter(|path| Path::new(path).exists())
        .copied()
        .collect()
}

/// What a network has left in the kernel.
#[derive(Debug)]
pub struct Found<'a> {
    /// The network.
    pub network: &'static Network,
    /// Its interfaces, without those of pods.
    pub links: Vec<&'a Link>,
    /// Interfaces of its pods: each pod still exists.
    pub pods: Vec<&'a Link>,
    /// Its routes.
    pub routes: Vec<&'a Route>,
    /// Its rules.
    pub rules: Vec<&'a Rule>,
    /// Pins of its eBPF programs.
    pub pins: Vec<&'static str>,
}

impl<'a> Found<'a> {
    /// What `network` has left on `host`. With `named_by_operator`, interfaces whose names others use too count
    /// without another interface of the network.
    pub fn on(host: Host<'a>, network: &'static Network, named_by_operator: bool) -> Self {
        let named = |patterns| {
            let links = host.links.iter();
            links.filter(move |link| table::matches(patterns, &link.name))
        };
        // The kernel makes `tunl0` by itself, without an address, as soon as a program uses an IPIP tunnel.
        let is_used = |link: &&Link| {
            link.name != "tunl0" || host.addresses.iter().any(|it| it.index == link.index)
        };
        let mut links: Vec<&Link> = named(network.links).filter(is_used).collect();
        if named_by_operator || !links.is_empty() {
            links.extend(named(network.shared_links));
        }
        let is_pod = |link: &&Link| {
            let is_port = links.iter().any(|it| Some(it.index) == link.master);
            let is_veth = link.kind.as_deref() == Some("veth");
            !links.iter().any(|it| it.index == link.index)
                && is_veth
                && (table::matches(network.pod_links, &link.name) || is_port)
        };
        let pods: Vec<&Link> = host.links.iter().filter(is_pod).collect();
        let own: BTreeSet<u32> = links.iter().chain(&pods).map(|link| link.index).collect();
        let is_own = |route: &&Route| {
            let blackhole = route.kind == RouteKind::Blackhole;
            route.oif.is_some_and(|oif| own.contains(&oif))
                || network.protocols.contains(&route.protocol)
                || blackhole && network.blackholes.contains(&route.protocol)
        };
        Self {
            network,
            links,
            pods,
            routes: host.routes.iter().filter(is_own).collect(),
            rules: host
                .rules
                .iter()
                .filter(|rule| network.rule_tables.contains(&rule.table))
                .collect(),
            pins: host
                .pins
                .iter()
                .filter(|path| network.pins.contains(path))
                .copied()
                .collect(),
        }
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
            && self.pods.is_empty()
            && self.routes.is_empty()
            && self.rules.is_empty()
            && self.pins.is_empty()
    }

    /// What was found, and the remedy. Without numbers and without single routes: both change with each pod and each
    /// node of a network that still runs, and a problem whose text changes is a new problem.
    fn text(&self, host: Host) -> String {
        let mut parts = Vec::new();
        if !self.links.is_empty() {
            let names: BTreeSet<&str> = self.links.iter().map(|link| &*link.name).collect();
            parts.push(format!("interfaces {}", listed(names)));
        }
        if !self.pods.is_empty() {
            parts.push("pods".into());
        }
        let is_of_pod = |route: &&&Route| self.pods.iter().any(|it| Some(it.index) == route.oif);
        let routes = self.routes.iter().filter(|it| !is_of_pod(it));
        parts.extend(
            routes
                .map(|it| self.kind_of(it, host))
                .collect::<BTreeSet<_>>(),
        );
        if !self.rules.is_empty() {
            let tables: BTreeSet<String> =
                self.rules.iter().map(|it| it.table.to_string()).collect();
            parts.push(format!("rules to the tables {}", listed(tables)));
        }
        if !self.pins.is_empty() {
            parts.push(format!("eBPF programs in {}", self.pins.join(", ")));
        }
        let (name, parts) = (self.network.name, parts.join("; "));
        format!(
            "this host has parts of the pod network {name}: {parts}; remedy: once {name} runs on no node of the cluster, `ipip-agent prepare --clean-up-after {name}`, or the DaemonSet's cleanUpAfter"
        )
    }

    /// A route without its destination.
    fn kind_of(&self, route: &Route, host: Host) -> String {
        if route.kind == RouteKind::Blackhole {
            return "blackhole routes".into();
        }
        let link = host.links.iter().find(|link| Some(link.index) == route.oif);
        let link = link.map_or("no interface", |link| &link.name);
        if self.links.iter().any(|it| it.name == link) {
            return format!("routes through {link}");
        }
        format!("routes of protocol {} through {link}", route.protocol)
    }
}

fn listed<T: AsRef<str>>(names: BTreeSet<T>) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    names.join(", ")
}

/// A problem for each network that has left something on `host`.
pub fn problems(host: Host) -> Vec<Problem> {
    let found = NETWORKS
        .iter()
        .map(|network| Found::on(host, network, false));
    let mut found: Vec<Found> = found.filter(|found| !found.is_empty()).collect();
    // Canal is flannel's network with Calico's interfaces of pods. It is not flannel and Calico.
    let has = |name: &str| found.iter().find(|it| it.network.name == name);
    let is_canal = has("flannel").is_some() && has("calico").is_some_and(|it| it.links.is_empty());
    found.retain(|it| match it.network.name {
        "canal" => is_canal,
        "flannel" | "calico" => !is_canal,
        _ => true,
    });
    let problem = |found: &Found| Problem::new(Reason::OtherNetworkLeftovers, found.text(host));
    found.iter().map(problem).collect()
}

/// A route in the notation of `ip route`.
pub fn description(route: &Route, host: Host) -> String {
    let mut words = Vec::new();
    if route.kind == RouteKind::Blackhole {
        words.push("blackhole".into());
    }
    words.push(route.destination.to_string());
    words.extend(route.gateway.map(|gateway| format!("via {gateway}")));
    let link = host.links.iter().find(|link| Some(link.index) == route.oif);
    words.extend(link.map(|link| format!("dev {}", link.name)));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipip_netlink::Scope;
    use std::net::Ipv4Addr;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: (!kind.is_empty()).then(|| kind.into()),
            ..Link::default()
        }
    }

    fn address(index: u32, network: &str) -> Address {
        Address {
            index,
            network: network.parse().unwrap(),
            scope: Scope::Global,
        }
    }

    fn route(destination: &str, oif: u32) -> Route {
        let destination: ipnetwork::Ipv4Network = destination.parse().unwrap();
        Route::through(destination, destination.network(), oif)
    }

    fn texts(links: &[Link], addresses: &[Address], routes: &[Route]) -> Vec<String> {
        let host = Host {
            links,
            addresses,
            routes,
            rules: &[],
            pins: &[],
        };
        problems(host).into_iter().map(|it| it.text).collect()
    }

    #[test]
    fn flannels_interfaces_and_routes_are_named_with_the_remedy() {
        let mut port = link(5, "veth0123", "veth");
        port.master = Some(4);
        let links = [
            link(2, "eth0", ""),
            link(3, "flannel.1", "vxlan"),
            link(4, "cni0", "bridge"),
            port,
        ];
        let routes = [route("10.42.3.0/24", 3), route("10.0.9.0/24", 2)];
        let texts = texts(&links, &[], &routes);
        assert_eq!(texts.len(), 1, "{texts:?}");
        for part in [
            "pod network flannel",
            "interfaces cni0, flannel.1; pods; routes through flannel.1",
            "`ipip-agent prepare --clean-up-after flannel`",
        ] {
            assert!(texts[0].contains(part), "{part}: {texts:?}");
        }
    }

    #[test]
    fn an_interface_whose_name_others_use_too_is_no_leftover_by_itself() {
        assert!(
            texts(
                &[link(4, "cni0", "bridge"), link(7, "tunl0", "ipip")],
                &[],
                &[]
            )
            .is_empty()
        );
    }

    #[test]
    fn calicos_tunnel_counts_once_it_has_an_address() {
        let links = [link(7, "tunl0", "ipip")];
        let texts = texts(
            &links,
            &[address(7, "10.42.3.64/32")],
            &[route("10.42.3.64/26", 7)],
        );
        assert!(
            texts[0].contains("pod network calico: interfaces tunl0; routes through tunl0"),
            "{texts:?}"
        );
    }

    #[test]
    fn the_text_stays_the_same_while_a_running_network_adds_pods_and_nodes() {
        let tunnel = link(7, "vxlan.calico", "vxlan");
        let mut links = vec![link(2, "eth0", ""), tunnel];
        let felix = |destination: &str, oif| Route {
            protocol: 80,
            ..route(destination, oif)
        };
        let mut routes = vec![];
        let mut seen = BTreeSet::new();
        for number in 1..5_u32 {
            links.push(link(10 + number, &format!("cali{number}"), "veth"));
            routes.push(felix(&format!("10.42.1.{number}/32"), 10 + number));
            routes.push(felix(&format!("10.42.{number}.0/26"), 7));
            routes.push(felix(&format!("10.43.{number}.0/26"), 2));
            // The kernel lists in no particular order.
            links.reverse();
            routes.reverse();
            seen.extend(texts(&links, &[], &routes));
        }
        assert_eq!(seen.len(), 1, "{seen:?}");
        let text = seen.pop_first().unwrap();
        let parts = "interfaces vxlan.calico; pods; routes of protocol 80 through eth0; routes through vxlan.calico; remedy";
        assert!(text.contains(parts), "{text}");
    }

    #[test]
    fn blackhole_routes_of_bird_are_calicos_and_its_other_routes_are_not() {
        let bird = Route {
            protocol: 12,
            ..route("10.42.3.64/26", 2)
        };
        let links = [link(2, "eth0", "")];
        assert!(texts(&links, &[], &[bird]).is_empty());
        let blackhole = Route {
            kind: RouteKind::Blackhole,
            oif: None,
            gateway: None,
            ..bird
        };
        let texts = texts(&links, &[], &[bird, blackhole]);
        assert!(
            texts[0].contains("pod network calico: blackhole routes; remedy"),
            "{texts:?}"
        );
    }

    #[test]
    fn flannel_with_calicos_pods_is_canal() {
        let links = [
            link(3, "flannel.1", "vxlan"),
            link(6, "cali0123456789a", "veth"),
        ];
        let texts = texts(&links, &[], &[]);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].contains("pod network canal"), "{texts:?}");
    }

    #[test]
    fn an_own_port_of_a_networks_bridge_is_no_pod() {
        let mut port = link(5, "vethwe-bridge", "veth");
        port.master = Some(4);
        let links = [
            link(4, "weave", "bridge"),
            port,
            link(6, "lxc_health", "veth"),
        ];
        let texts = texts(&links, &[], &[]);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts.iter().all(|text| !text.contains(" pods")),
            "{texts:?}"
        );
    }

    #[test]
    fn pins_of_a_networks_programs_are_leftovers() {
        let host = Host {
            links: &[],
            addresses: &[],
            routes: &[],
            rules: &[],
            pins: &["/sys/fs/bpf/cilium"],
        };
        let found = problems(host);
        assert_eq!(found.len(), 1, "{found:?}");
        let expected = "pod network cilium: eBPF programs in /sys/fs/bpf/cilium; remedy";
        assert!(found[0].text.contains(expected), "{found:?}");
    }

    #[test]
    fn each_network_with_interfaces_is_recognised_by_them() {
        for network in NETWORKS {
            let Some(pattern) = network.links.first() else {
                continue;
            };
            let link = link(3, &pattern.replace('*', "1"), "");
            let addresses = [Address {
                index: 3,
                network: Ipv4Addr::new(10, 42, 1, 0).into(),
                scope: Scope::Global,
            }];
            let texts = texts(&[link], &addresses, &[]);
            let shared = if network.name == "canal" {
                "flannel"
            } else {
                network.name
            };
            assert!(
                texts[0].contains(&format!("pod network {shared}:")),
                "{texts:?}"
            );
        }
    }
}
