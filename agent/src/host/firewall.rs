//! Firewalls of the host that drop what this node forwards for pods.
//!
//! A firewall can drop in any table and by any tool, and an accept elsewhere does not help. The agent changes no rules of
//! others, so it reports the cause and the remedy. It follows the rules for the first packet of three typical
//! connections. What it cannot judge counts as accepted: a false alarm can make a node not ready.

use crate::host::ipip0;
use ipip_netlink::{
    Error, FilterAction, FilterField, FilterRule, FilterTest, ForwardFilter, Nftables, if_supported,
};
use ipnetwork::Ipv4Network;
use nix::libc;
use std::net::Ipv4Addr;

/// Chains that call each other further than this count as unknown.
const MAX_DEPTH: u32 = 16;
/// An address that is nowhere (RFC 5737), so no rule is about it.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Interface of a pod: like all of them its name begins with `pod`, and no rule knows its index.
const POD: Interface<'_> = Interface {
    index: u32::MAX,
    name: "pod",
};

/// The kinds of traffic that are followed.
const INTERNET: &str = "connections from pods to the Internet";
const HOST_PORTS: &str = "connections to hostPorts and NodePorts";
const SERVICES: &str = "connections from pods to Services";

/// What the firewalls are asked about.
#[derive(Clone, Debug)]
pub struct Traffic<'a> {
    /// Pod CIDRs of this node.
    pub pods: &'a [Ipv4Network],
    /// A pod CIDR of a peer.
    pub peer_pods: Option<Ipv4Network>,
    /// Index and name of each uplink that leads to the Internet.
    pub uplinks: Vec<(u32, &'a str)>,
}

/// A firewall that drops traffic of pods.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the firewall chain {chain} drops {}; remedy: {remedy}; or `forwardAccept: false` if this is intended",
    dropped.join(" and ")
)]
pub struct Drops {
    chain: String,
    /// The dropped kinds of traffic.
    dropped: Vec<&'static str>,
    remedy: String,
}

/// The firewalls that drop `traffic`.
///
/// # Errors
/// The rules cannot be read.
pub fn check(traffic: &Traffic<'_>) -> Result<Vec<Drops>, Error> {
    let Some(mut nftables) = if_supported(Nftables::open())? else {
        return Ok(Vec::new());
    };
    let filters = nftables.forward_filters()?.into_iter();
    let filters = filters.chain(ipip_netlink::legacy_forward_filter()?);
    Ok(filters.filter_map(|it| drops(&it, traffic)).collect())
}

/// What `filter` drops of `traffic`, if anything.
fn drops(filter: &ForwardFilter, traffic: &Traffic<'_>) -> Option<Drops> {
    let is_dropped = |packet: &Packet<'_>| outcome(filter, packet) == Outcome::Drop;
    let dropped: Vec<_> = traffic
        .packets()
        .into_iter()
        // Traffic that one of several uplinks takes has a way.
        .filter(|(_, packets)| !packets.is_empty() && packets.iter().all(is_dropped))
        .map(|(kind, _)| kind)
        .collect();
    (!dropped.is_empty()).then(|| Drops {
        chain: filter.name.clone(),
        dropped,
        remedy: remedy(&filter.name, traffic.pods),
    })
}

impl Drops {
    /// Whether pods lack Services, which every cluster needs. Hosts may keep pods from the Internet on purpose.
    pub fn cut_services(&self) -> bool {
        self.dropped.contains(&SERVICES)
    }
}

/// The commands that let packets of pods pass.
fn remedy(chain: &str, pods: &[Ipv4Network]) -> String {
    let ipip0 = ipip0::NAME;
    let mut commands = Vec::new();
    if chain.starts_with("inet firewalld ") {
        let trusted = "firewall-cmd --permanent --zone=trusted";
        commands.extend(pods.iter().map(|it| format!("{trusted} --add-source={it}")));
        commands.push(format!("{trusted} --add-interface={ipip0}"));
        commands.push("firewall-cmd --reload".into());
    } else if let Some(legacy) = chain.strip_prefix("iptables-legacy ") {
        let insert = format!("iptables-legacy -I {legacy}");
        for pods in pods {
            commands.push(format!("{insert} -s {pods} -j ACCEPT"));
            commands.push(format!("{insert} -d {pods} -j ACCEPT"));
        }
        for direction in ["-i", "-o"] {
            let dnat = "-m conntrack --ctstate DNAT";
            commands.push(format!("{insert} {direction} {ipip0} {dnat} -j ACCEPT"));
        }
    } else {
        let insert = format!("nft insert rule {chain}");
        for pods in pods {
            commands.push(format!("{insert} ip saddr {pods} accept"));
            commands.push(format!("{insert} ip daddr {pods} accept"));
        }
        for direction in ["iifname", "oifname"] {
            commands.push(format!(
                "{insert} {direction} {ipip0} ct status dnat accept"
            ));
        }
    }
    let commands = commands.join(" && ");
    format!("`{commands}`, and keep this in the firewall's configuration")
}

/// An interface, as rules name it.
#[derive(Clone, Copy, Debug)]
struct Interface<'a> {
    index: u32,
    name: &'a str,
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
struct Packet<'a> {
    arrives: Interface<'a>,
    leaves: Interface<'a>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    /// Whether DNAT has changed the destination.
    translated: bool,
}

impl Traffic<'_> {
    /// The packets to follow, with the kind of traffic that each stands for.
    fn packets(&self) -> Vec<(&'static str, Vec<Packet<'_>>)> {
        let Some(pod) = self.pods.first().map(address) else {
            return Vec::new();
        };
        let from_pod = |leaves, destination, translated| Packet {
            arrives: POD,
            leaves,
            source: pod,
            destination,
            translated,
        };
        let uplinks = self.uplinks.iter();
        let uplinks = uplinks.map(|&(index, name)| Interface { index, name });
        let to_internet = uplinks
            .clone()
            .map(|uplink| from_pod(uplink, OUTSIDE, false));
        let to_host_port = uplinks.map(|uplink| Packet {
            arrives: uplink,
            leaves: POD,
            source: OUTSIDE,
            destination: pod,
            translated: true,
        });
        // No rule knows the index: the interface is newer than the rules.
        let ipip0 = Interface {
            index: u32::MAX - 1,
            name: ipip0::NAME,
        };
        let peer_pods = self.peer_pods.iter();
        let to_service = peer_pods.map(|pods| from_pod(ipip0, address(pods), true));
        vec![
            (INTERNET, to_internet.collect()),
            (HOST_PORTS, to_host_port.collect()),
            (SERVICES, to_service.collect()),
        ]
    }
}

/// An address of the network that no pod has, except in a network of one address.
fn address(network: &Ipv4Network) -> Ipv4Addr {
    network.network()
}

impl Packet<'_> {
    /// The value of a field; `None` if it is not known.
    fn field(&self, field: FilterField) -> Option<Vec<u8>> {
        let name = |interface: Interface<'_>| {
            let mut name = interface.name.as_bytes().to_vec();
            name.resize(libc::IFNAMSIZ, 0);
            name
        };
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        Some(match field {
            FilterField::InName => name(self.arrives),
            FilterField::OutName => name(self.leaves),
            FilterField::InIndex => self.arrives.index.to_ne_bytes().into(),
            FilterField::OutIndex => self.leaves.index.to_ne_bytes().into(),
            FilterField::Source => self.source.octets().into(),
            FilterField::Destination => self.destination.octets().into(),
            FilterField::State => u32::from(FilterField::NEW).to_ne_bytes().into(),
            FilterField::Status => u32::from(bit(self.translated, FilterField::TRANSLATED))
                .to_ne_bytes()
                .into(),
            FilterField::XtablesState => {
                let translated = bit(self.translated, FilterField::XTABLES_TRANSLATED);
                u16::from(FilterField::NEW | translated)
                    .to_ne_bytes()
                    .into()
            }
            FilterField::Family => vec![libc::NFPROTO_IPV4 as u8],
            FilterField::EtherType => (libc::ETH_P_IP as u16).to_be_bytes().into(),
            FilterField::Other | FilterField::Unknown => return None,
        })
    }
}

/// What a firewall does with a packet, as far as the model can tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Accept,
    Drop,
    /// Perhaps accepted, or dropped by a rule that an operator wrote for just such packets.
    Unknown,
}

fn outcome(filter: &ForwardFilter, packet: &Packet<'_>) -> Outcome {
    let mut walk = Walk {
        filter,
        packet,
        is_unsure: false,
    };
    let end = walk.chain(&filter.rules, 0);
    let by_policy = if filter.drops {
        Outcome::Drop
    } else {
        Outcome::Accept
    };
    match end.unwrap_or(by_policy) {
        Outcome::Drop if walk.is_unsure => Outcome::Unknown,
        outcome => outcome,
    }
}

struct Walk<'a> {
    filter: &'a ForwardFilter,
    packet: &'a Packet<'a>,
    /// Whether a rule that cannot be judged may have accepted the packet.
    is_unsure: bool,
}

/// Whether a packet meets a condition.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Met {
    Yes,
    No,
    /// Some packets of the connection's kind do, for example those with a certain port.
    Partly,
    Unknown,
}

impl Walk<'_> {
    /// The outcome if the chain decides; `None` if it returns.
    fn chain(&mut self, rules: &[FilterRule], depth: u32) -> Option<Outcome> {
        if depth > MAX_DEPTH {
            return Some(Outcome::Unknown);
        }
        for rule in rules {
            let met = rule
                .tests
                .iter()
                .map(|it| self.meets(it))
                .fold(Met::Yes, worse);
            match (met, &rule.action) {
                // What only some connections meet decides nothing for the others.
                (Met::No | Met::Partly, _) | (_, FilterAction::Continue) => {}
                (Met::Unknown, FilterAction::Drop | FilterAction::Return) => {}
                (Met::Unknown, _) | (_, FilterAction::Unknown) => self.is_unsure = true,
                (Met::Yes, FilterAction::Accept) => return Some(Outcome::Accept),
                (Met::Yes, FilterAction::Drop) if is_about_pods(rule) => {
                    return Some(Outcome::Unknown);
                }
                (Met::Yes, FilterAction::Drop) => return Some(Outcome::Drop),
                (Met::Yes, FilterAction::Return) => return None,
                (Met::Yes, FilterAction::Jump(chain)) => {
                    let outcome = self.call(chain, depth);
                    if outcome.is_some() {
                        return outcome;
                    }
                }
                (Met::Yes, FilterAction::Goto(chain)) => return self.call(chain, depth),
            }
        }
        None
    }

    fn call(&mut self, chain: &str, depth: u32) -> Option<Outcome> {
        match self.filter.called.get(chain) {
            Some(rules) => self.chain(rules, depth + 1),
            None => Some(Outcome::Unknown),
        }
    }

    fn meets(&self, test: &FilterTest) -> Met {
        let Some(field) = self.packet.field(test.field) else {
            return match test.field {
                FilterField::Other => Met::Partly,
                _ => Met::Unknown,
            };
        };
        let is = |value: &Vec<u8>| {
            value.iter().enumerate().all(|(at, byte)| {
                let mask = test.mask.get(at).copied().unwrap_or(u8::MAX);
                field.get(at).is_some_and(|held| held & mask == *byte)
            })
        };
        if test.values.iter().any(is) == test.negated {
            return Met::No;
        }
        Met::Yes
    }
}

/// The answer for two conditions of one rule.
fn worse(one: Met, other: Met) -> Met {
    match (one, other) {
        (Met::No, _) | (_, Met::No) => Met::No,
        (Met::Unknown, _) | (_, Met::Unknown) => Met::Unknown,
        (Met::Partly, _) | (_, Met::Partly) => Met::Partly,
        (Met::Yes, Met::Yes) => Met::Yes,
    }
}

/// Whether a rule names addresses or interfaces that the packet has: then its author meant this traffic.
fn is_about_pods(rule: &FilterRule) -> bool {
    let names = |it: &FilterTest| {
        !it.negated
            && matches!(
                it.field,
                FilterField::InName
                    | FilterField::OutName
                    | FilterField::InIndex
                    | FilterField::OutIndex
                    | FilterField::Source
                    | FilterField::Destination
            )
    };
    rule.tests.iter().any(names)
}
