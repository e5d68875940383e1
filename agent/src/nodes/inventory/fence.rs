//! What a node may claim: values that its own Node backs, inside of the fence around the ranges of the cluster.
//!
//! An IpipNode says what its writer wants. The backing is what only the control plane, a cloud provider and the node's own
//! kubelet can write. The fence also holds against a kubelet, because its credentials allow any address in the node's own
//! Node. Pure.

use super::{Fault, Field, InvalidField, ParsedNode};
use crate::pod_pool::overlap;
use ipnetwork::Ipv4Network;
use std::{borrow::Cow, collections::BTreeSet, net::Ipv4Addr};

/// The widest pod CIDR. kube-controller-manager divides a range into at most 2^16 blocks and IPv4 pods need one address
/// each, so no cluster gives a node more; `nodeCIDRMaskSize` has the same bound.
const WIDEST_POD_CIDR: u8 = 16;

/// The ranges of the cluster, which bound the claims of every node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fence {
    /// The networks in which all pod CIDRs lie, and no other address of a node. Empty if they are not known.
    pub pods: Vec<Ipv4Network>,
    /// The networks of Services.
    pub services: Vec<Ipv4Network>,
    /// The addresses behind the Service `kubernetes`, which are in no pod CIDR.
    pub api_servers: BTreeSet<Ipv4Addr>,
}

/// What one node may claim, because others than its agent say so.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Backing {
    /// The InternalIPs of its Node.
    pub internal_ips: BTreeSet<Ipv4Addr>,
    /// The pod CIDRs of its Node.
    pub pod_cidrs: BTreeSet<Ipv4Network>,
}

/// The rules for the claims of one node.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The ranges of the cluster.
    pub fence: &'a Fence,
    /// What backs the claims.
    pub backing: &'a Backing,
    /// The node's blocks of the pool, which back pod CIDRs, too.
    pub blocks: &'a [Ipv4Network],
    /// Whether the backing is final. Otherwise a value that it lacks waits, which is no fault.
    pub is_final: bool,
}

impl Fence {
    /// Whether a node may have this InternalIP or public endpoint.
    ///
    /// # Errors
    /// The range in which it lies.
    pub fn address(&self, address: Ipv4Addr) -> Result<(), Fault> {
        let network = Ipv4Network::from(address);
        self.outside_of_services(&network)?;
        match first_overlap(&self.pods, &network) {
            Some(pods) => Err(Fault::InPods(pods)),
            None => Ok(()),
        }
    }

    /// Whether a node may have this pod CIDR.
    ///
    /// # Errors
    /// It is too wide, or outside of the ranges for pods, or in one for Services.
    pub fn pod_cidr(&self, network: &Ipv4Network) -> Result<(), Fault> {
        if network.prefix() < WIDEST_POD_CIDR {
            return Err(Fault::TooWide(WIDEST_POD_CIDR));
        }
        self.outside_of_services(network)?;
        let is_inside = |pods: &Ipv4Network| network.is_subnet_of(*pods);
        if !self.pods.is_empty() && !self.pods.iter().any(is_inside) {
            return Err(Fault::OutsideOfPods(self.pods.clone()));
        }
        let mut api_servers = self.api_servers.iter();
        match api_servers.find(|it| network.contains(**it)) {
            Some(address) => Err(Fault::HoldsApiServer(*address)),
            None => Ok(()),
        }
    }

    fn outside_of_services(&self, network: &Ipv4Network) -> Result<(), Fault> {
        match first_overlap(&self.services, network) {
            Some(services) => Err(Fault::InServices(services)),
            None => Ok(()),
        }
    }
}

impl Rules<'_> {
    /// Whether a value of `claim` waits.
    pub fn leave_waiting(&self, claim: &ParsedNode) -> bool {
        let mut ips = claim.node.internal_ips.iter();
        let mut cidrs = claim.node.pod_cidrs.iter();
        let waits = |checked| matches!(checked, Err(Refusal::Waits));
        ips.any(|it| waits(self.internal_ip(it))) || cidrs.any(|it| waits(self.pod_cidr(it)))
    }

    /// `claim` without the values that the node may not have. Those are invalid then, except for values that wait.
    pub fn apply<'a>(&self, claim: &'a ParsedNode) -> Cow<'a, ParsedNode> {
        let mut removed = Removed::default();
        let ips = removed.keep(Field::InternalIps, claim.internal_ips(), |it| {
            self.internal_ip(it)
        });
        let cidrs = removed.keep(Field::PodCidrs, claim.pod_cidrs(), |it| self.pod_cidr(it));
        let endpoint = claim.endpoint().into_iter();
        let endpoint = removed.keep(Field::PublicEndpoint, endpoint, |ip| {
            Ok(self.fence.address(*ip)?)
        });
        if removed.count == 0 {
            return Cow::Borrowed(claim);
        }
        let mut claim = claim.clone();
        (claim.node.internal_ips, claim.ip_lines) = ips.into_iter().unzip();
        (claim.node.pod_cidrs, claim.cidr_lines) = cidrs.into_iter().unzip();
        claim.node.public_endpoint = endpoint.first().map(|(ip, _)| *ip);
        claim.invalid.extend(removed.invalid);
        Cow::Owned(claim)
    }

    fn internal_ip(&self, ip: &Ipv4Addr) -> Result<(), Refusal> {
        self.fence.address(*ip)?;
        self.backed(self.backing.internal_ips.contains(ip), "status.addresses")
    }

    fn pod_cidr(&self, network: &Ipv4Network) -> Result<(), Refusal> {
        self.fence.pod_cidr(network)?;
        let is_backed = self.backing.pod_cidrs.contains(network) || self.blocks.contains(network);
        self.backed(is_backed, "spec.podCIDRs")
    }

    fn backed(&self, is_backed: bool, field: &'static str) -> Result<(), Refusal> {
        match (is_backed, self.is_final) {
            (true, _) => Ok(()),
            (false, true) => Err(Refusal::Because(Fault::NotOfNode(field))),
            (false, false) => Err(Refusal::Waits),
        }
    }
}

/// Why a value is not used.
enum Refusal {
    Because(Fault),
    /// The Node is not known yet.
    Waits,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Because(fault)
    }
}

/// The values that are not used.
#[derive(Default)]
struct Removed {
    count: usize,
    invalid: Vec<InvalidField>,
}

impl Removed {
    /// The `values` of `field` that pass `check`, with their lines.
    fn keep<T: ToString>(
        &mut self,
        field: Field,
        values: impl Iterator<Item = (T, Option<u64>)>,
        check: impl Fn(&T) -> Result<(), Refusal>,
    ) -> Vec<(T, Option<u64>)> {
        let mut kept = Vec::new();
        for (value, line) in values {
            let Err(refusal) = check(&value) else {
                kept.push((value, line));
                continue;
            };
            self.count += 1;
            if let Refusal::Because(fault) = refusal {
                self.invalid.push(InvalidField {
                    line,
                    field,
                    value: value.to_string(),
                    fault,
                });
            }
        }
        kept
    }
}

fn first_overlap(networks: &[Ipv4Network], network: &Ipv4Network) -> Option<Ipv4Network> {
    networks.iter().copied().find(|it| overlap(it, network))
}

#[cfg(test)]
mod tests {
    use super::{super::Claim, *};

    fn networks(texts: &[&str]) -> Vec<Ipv4Network> {
        texts.iter().map(|it| it.parse().unwrap()).collect()
    }

    fn fence() -> Fence {
        Fence {
            pods: networks(&["10.42.0.0/16", "10.50.0.0/20"]),
            services: networks(&["10.96.0.0/12"]),
            api_servers: BTreeSet::from([Ipv4Addr::new(172, 20, 0, 5)]),
        }
    }

    fn claim(ips: &[&str], cidrs: &[&str], endpoint: Option<&str>) -> ParsedNode {
        Claim {
            name: "a1".into(),
            internal_ips: ips.iter().map(|it| (*it).into()).collect(),
            pod_cidrs: cidrs.iter().map(|it| (*it).into()).collect(),
            public_endpoint: endpoint.map(Into::into),
            realm: None,
            encapsulation: None,
            probe_key: None,
        }
        .parse()
    }

    fn backing(ips: &[&str], cidrs: &[&str]) -> Backing {
        Backing {
            internal_ips: ips.iter().map(|it| it.parse().unwrap()).collect(),
            pod_cidrs: networks(cidrs).into_iter().collect(),
        }
    }

    #[test]
    fn no_range_outside_of_the_pods_in_services_or_wider_than_a_16_is_a_pod_cidr() {
        let fence = fence();
        for (text, refused) in [
            ("10.42.1.0/24", ""),
            ("10.42.0.0/16", ""),
            ("10.50.15.0/24", ""),
            (
                "10.50.16.0/24",
                "is not in the pod ranges of the cluster (10.42.0.0/16, 10.50.0.0/20)",
            ),
            ("10.0.0.0/16", "is not in the pod ranges"),
            ("10.96.0.0/16", "is in the Service range 10.96.0.0/12"),
            ("10.96.0.10/32", "is in the Service range"),
            ("10.42.0.0/15", "is wider than a /16"),
            ("64.0.0.0/3", "is wider than a /16"),
        ] {
            let network = text.parse().unwrap();
            let why = fence.pod_cidr(&network).err().map(|fault| {
                let field = Field::PodCidrs;
                InvalidField {
                    line: None,
                    field,
                    value: text.into(),
                    fault,
                }
                .to_string()
            });
            assert_eq!(why.is_none(), refused.is_empty(), "{text}: {why:?}");
            assert!(why.unwrap_or_default().contains(refused), "{text}");
        }
        let unknown = Fence {
            pods: Vec::new(),
            ..fence
        };
        assert_eq!(unknown.pod_cidr(&"192.168.0.0/16".parse().unwrap()), Ok(()));
        let why = unknown.pod_cidr(&"172.20.0.0/24".parse().unwrap());
        assert_eq!(why, Err(Fault::HoldsApiServer([172, 20, 0, 5].into())));
        assert!(
            unknown
                .pod_cidr(&"192.168.0.0/15".parse().unwrap())
                .is_err()
        );
    }

    #[test]
    fn addresses_of_services_and_pods_are_no_addresses_of_nodes() {
        let fence = fence();
        let refused = |text: &str| fence.address(text.parse().unwrap()).is_err();
        assert!(refused("10.96.0.10") && refused("10.42.200.1"));
        assert!(!refused("10.43.0.1") && !refused("203.0.113.1"));
    }

    #[test]
    fn only_what_the_node_backs_is_left_and_the_rest_waits_until_the_backing_is_final() {
        let claim = claim(
            &["10.0.0.1", "10.0.0.2", "10.96.0.10"],
            &["10.42.1.0/24", "10.42.2.0/24"],
            Some("10.97.0.1"),
        );
        let backing = backing(&["10.0.0.1", "10.96.0.10"], &["10.42.1.0/24"]);
        let fence = fence();
        let rules = |is_final| Rules {
            fence: &fence,
            backing: &backing,
            blocks: &[],
            is_final,
        };
        assert!(rules(false).leave_waiting(&claim) && !rules(true).leave_waiting(&claim));
        for is_final in [false, true] {
            let left = rules(is_final).apply(&claim);
            assert_eq!(left.node.internal_ips, [Ipv4Addr::new(10, 0, 0, 1)]);
            assert_eq!(left.node.pod_cidrs, networks(&["10.42.1.0/24"]));
            assert_eq!(left.node.public_endpoint, None);
        }
        let texts = |is_final| -> Vec<String> {
            let left = rules(is_final).apply(&claim);
            left.invalid.iter().map(ToString::to_string).collect()
        };
        // The fence needs no Node.
        assert_eq!(texts(false).len(), 2, "{:?}", texts(false));
        let all = texts(true);
        assert_eq!(all.len(), 4, "{all:?}");
        assert!(
            all[0].contains("internalIPs: \"10.0.0.2\" is not in status.addresses of the Node")
        );
        assert!(all[2].contains("podCIDRs: \"10.42.2.0/24\" is not in spec.podCIDRs of the Node"));
    }

    #[test]
    fn a_claim_that_is_backed_as_a_whole_is_not_copied() {
        let claim = claim(&["10.0.0.1"], &["10.42.1.0/24"], Some("203.0.113.1"));
        let backing = backing(&["10.0.0.1", "10.0.0.9"], &["10.42.1.0/24"]);
        let fence = fence();
        let rules = Rules {
            fence: &fence,
            backing: &backing,
            blocks: &[],
            is_final: true,
        };
        assert!(matches!(rules.apply(&claim), Cow::Borrowed(_)));
    }
}
