//! What other pod networks create on a host. To add one, add a row.

/// A pod network, and what it creates on a host. In a pattern, `*` at the end stands for any text
/// and `#` for hexadecimal digits.
#[derive(Debug)]
pub struct Network {
    /// Its name, as an operator writes it.
    pub name: &'static str,
    /// Interfaces that are not pods'.
    pub links: &'static [&'static str],
    /// Interfaces whose names other software uses too. They count only beside another interface of this network.
    pub shared_links: &'static [&'static str],
    /// Host ends of pods' interfaces. Each belongs to a pod that still exists: they are reported, and the kernel
    /// removes them with the pods.
    pub pod_links: &'static [&'static str],
    /// Protocols of its routes (`/etc/iproute2/rt_protos`) that no other software uses.
    pub protocols: &'static [u8],
    /// Protocols of its blackhole routes, which cover the blocks of addresses of this host.
    pub blackholes: &'static [u8],
    /// Policy routing rules, by the table that they look up.
    pub rule_tables: &'static [u32],
    /// Chains of iptables.
    pub chains: &'static [&'static str],
    /// Starts of the comments of its rules in chains of others.
    pub comments: &'static [&'static str],
    /// Tables of nftables, with the family in front.
    pub nft_tables: &'static [&'static str],
    /// Configurations in the folder of CNI configurations.
    pub configurations: &'static [&'static str],
    /// Files and folders of its state.
    pub files: &'static [&'static str],
    /// Pins of its eBPF programs. A program ends with its last pin; those attached by `tc` are deleted by name.
    pub pins: &'static [&'static str],
    /// Names of its eBPF programs on interfaces.
    pub programs: &'static [&'static str],
}

const NOTHING: Network = Network {
    name: "",
    links: &[],
    shared_links: &[],
    pod_links: &[],
    protocols: &[],
    blackholes: &[],
    rule_tables: &[],
    chains: &[],
    comments: &[],
    nft_tables: &[],
    configurations: &[],
    files: &[],
    pins: &[],
    programs: &[],
};

/// The networks that are recognised.
pub const NETWORKS: &[Network] = &[
    Network {
        name: "flannel",
        // `cni0` is the bridge of the plugin to which flannel delegates; its ports are the pods' interfaces.
        links: &["flannel.*", "flannel-v6.*", "flannel-wg*"],
        shared_links: &["cni0"],
        chains: &["FLANNEL-*"],
        nft_tables: &["ip flannel-ipv4", "ip6 flannel-ipv6"],
        configurations: &["*flannel*"],
        files: &[
            "/run/flannel",
            "/var/lib/cni/flannel",
            "/var/lib/cni/networks/cbr0",
        ],
        ..NOTHING
    },
    Network {
        name: "calico",
        links: &[
            "tunl0",
            "vxlan.calico",
            "vxlan-v6.calico",
            "wireguard.cali",
            "wg-v6.cali",
            "bpfin.cali",
            "bpfout.cali",
        ],
        pod_links: &["cali#"],
        // Felix writes 80. BIRD's 12 is also that of other BIRDs: its routes go with their interfaces.
        protocols: &[80],
        blackholes: &[12],
        chains: &["cali-*"],
        comments: &["cali:"],
        configurations: &["*calico*"],
        files: &[
            "/run/calico",
            "/var/lib/calico",
            "/var/lib/cni/networks/k8s-pod-network",
        ],
        pins: &["/sys/fs/bpf/calico", "/sys/fs/bpf/tc/globals/cali_*"],
        programs: &["cali_*"],
        ..NOTHING
    },
    Network {
        name: "canal",
        links: &["flannel.*"],
        shared_links: &["cni0"],
        pod_links: &["cali#"],
        protocols: &[80],
        chains: &["FLANNEL-*", "cali-*"],
        comments: &["cali:"],
        configurations: &["*canal*", "calico-kubeconfig"],
        files: &[
            "/run/flannel",
            "/run/calico",
            "/var/lib/calico",
            "/var/lib/cni/networks/k8s-pod-network",
        ],
        ..NOTHING
    },
    Network {
        name: "cilium",
        // The second is the health check's, not a pod's.
        links: &["cilium_*", "lxc_health"],
        pod_links: &["lxc#", "lxc_health"],
        rule_tables: &[2004, 2005],
        chains: &["CILIUM_*", "OLD_CILIUM_*"],
        configurations: &["*cilium*"],
        files: &["/run/cilium"],
        pins: &["/sys/fs/bpf/cilium", "/sys/fs/bpf/tc/globals/cilium_*"],
        programs: &["cil_*", "bpf_netdev*", "bpf_host*", "bpf_overlay*"],
        ..NOTHING
    },
    Network {
        name: "kindnet",
        chains: &["KIND-MASQ-AGENT"],
        configurations: &["*kindnet*"],
        files: &["/var/lib/cni/networks/kindnet"],
        ..NOTHING
    },
    Network {
        name: "weave",
        links: &["weave", "datapath", "vxlan-6784", "vethwe-*"],
        pod_links: &["vethwepl#"],
        chains: &["WEAVE", "WEAVE-*"],
        configurations: &["*weave*"],
        files: &["/var/lib/weave"],
        ..NOTHING
    },
];

/// The network that has this name.
pub fn by_name(name: &str) -> Option<&'static Network> {
    NETWORKS.iter().find(|network| network.name == name)
}

/// Whether `name` matches one of `patterns`.
pub fn matches(patterns: &[&str], name: &str) -> bool {
    let is_hash = |end: &str| !end.is_empty() && end.bytes().all(|it| it.is_ascii_hexdigit());
    let matches = |pattern: &&str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern.ends_with('#') => name
            .strip_prefix(pattern.trim_end_matches('#'))
            .is_some_and(is_hash),
        (Some(_), Some(_)) => name.contains(pattern.trim_matches('*')),
        (None, Some(start)) => name.starts_with(start),
        _ => name == *pattern,
    };
    patterns.iter().any(matches)
}

/// The network to which an interface belongs by its name.
pub fn of_link(name: &str) -> Option<&'static Network> {
    let has = |network: &&Network| {
        let lists = [network.links, network.shared_links, network.pod_links];
        lists.into_iter().any(|patterns| matches(patterns, name))
    };
    NETWORKS.iter().find(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_start_the_middle_or_the_whole_name() {
        for (pattern, name, expected) in [
            ("flannel.*", "flannel.1", true),
            ("flannel.*", "flannel", false),
            ("lxc#", "lxc3f0a91", true),
            ("lxc#", "lxcbr0", false),
            ("lxc#", "lxc", false),
            ("cni0", "cni0", true),
            ("cni0", "cni01", false),
            ("*calico*", "10-calico.conflist", true),
            ("*calico*", "10-canal.conflist", false),
        ] {
            assert_eq!(matches(&[pattern], name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn no_row_matches_an_interface_chain_or_file_of_ours_or_of_the_host() {
        let ours = [
            "ipip0",
            "ipip0-peer",
            "pod0123456789a",
            "eth0",
            "lo",
            "docker0",
            "nodelocaldns",
        ];
        let chains = [
            "KUBE-SERVICES",
            "KUBE-FORWARD",
            "DOCKER",
            "CNI-HOSTPORT-DNAT",
            "ufw-user-input",
        ];
        for link in ours {
            assert!(of_link(link).is_none(), "{link}");
        }
        for network in NETWORKS {
            for chain in chains {
                assert!(!matches(network.chains, chain), "{} {chain}", network.name);
            }
            assert!(!matches(network.configurations, "10-ipip.conflist"));
            assert!(!matches(network.configurations, "00-multus.conf"));
            assert_eq!(by_name(network.name).map(|it| it.name), Some(network.name));
        }
        assert!(by_name("flanel").is_none());
    }
}
