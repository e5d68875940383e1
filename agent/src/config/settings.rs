//! The table of settings.

use super::{
    error::{ConfigError, InvalidSetting, Origin},
    parsers::{self as parse, ForeignIpip, LearnedEndpoint, LogFormat, NodeSourceKind},
    sources::{List, Scalar, Texts},
};
use crate::pod_pool::PodPool;
use ipip_abi::Encapsulation;
use ipip_datapath::AttachMode;
use ipnetwork::Ipv4Network;
use serde::Deserialize;
use std::{net::SocketAddr, path::PathBuf};

/// A row of the table without its parser.
pub struct Setting {
    /// The key in the file. [`flag`](Self::flag) and [`variable`](Self::variable) follow from it.
    pub key: &'static str,
    /// The text that applies if the setting is omitted; a list has commas between its elements.
    pub default: &'static str,
    /// The meaning of an empty default; empty if the default is not empty.
    pub unset: &'static str,
    /// The values that can be used.
    pub values: &'static str,
    /// The documentation, line by line.
    pub doc: &'static [&'static str],
    /// Whether the file has a list here.
    pub is_list: bool,
}

/// Generates from each row: a field of [`Config`], a field of [`File`], a [`Setting`] and a line of
/// [`validate`].
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty {
            key: $key:literal, $form:ident, default: $default:literal $(means $unset:literal)?,
            values: $values:literal, parse: $parse:expr,
        }
    )*) => {
        /// The settings with which the agent runs.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Config {
            $(
                $(#[doc = $doc])+
                $(#[doc = concat!("Default: ", $unset, ".")])?
                pub $field: $type,
            )*
        }

        /// All settings, in the order in which they are documented.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            default: $default,
            unset: concat!($($unset)?),
            values: $values,
            doc: &[$($doc),+],
            is_list: $form::IS_LIST,
        }),*];

        /// The configuration file.
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct File { $(#[serde(rename = $key)] $field: Option<$form>,)* }

        impl File {
            /// The values that the file gives.
            pub fn into_texts(self) -> Texts {
                let mut texts = Texts::new();
                $(if let Some(value) = self.$field { texts.insert($key, value.into()); })*
                texts
            }
        }

        /// Parses every setting. Settings that are absent from `texts` have their default;
        /// `host_name` is the default of `nodeName`.
        ///
        /// # Errors
        /// Lists every value that cannot be used.
        pub fn validate(mut texts: Texts, host_name: &str) -> Result<Config, ConfigError> {
            texts
                .entry("nodeName")
                .or_insert_with(|| (host_name.to_owned(), Origin::Default));
            let mut invalid: Vec<_> = larger_blocks_than_networks(&texts).into_iter().collect();
            $(
                let (text, origin) = texts
                    .remove($key)
                    .unwrap_or_else(|| ($default.to_owned(), Origin::Default));
                let parsed: Option<$type> = $parse(&text);
                if parsed.is_none() {
                    invalid.push(InvalidSetting { key: $key, value: text, origin, values: $values });
                }
                let $field = parsed;
            )*
            if invalid.is_empty()
                && let ($(Some($field),)*) = ($($field,)*)
            {
                return Ok(Config { $($field),* });
            }
            Err(ConfigError::Values(invalid))
        }
    };
}

// To add a setting, add a row. `Scalar` or `List` is its form in the file. `parse` returns `None` for a text that
// cannot be used, and `values` is then the remedy.
settings! {
    /// Name of this node, as the inventory or Kubernetes has it.
    node_name: String {
        key: "nodeName", Scalar, default: "" means "the host name",
        values: "a name as Kubernetes gives it: lower-case letters, digits, - and ., at most 253",
        parse: parse::node_name,
    }
    /// Source of the nodes. `auto` is `kubernetes` in a pod or with a kubeconfig, otherwise `file`.
    node_source: NodeSourceKind {
        key: "nodeSource", Scalar, default: "auto",
        values: "auto, kubernetes or file", parse: parse::node_source,
    }
    /// Host of the API server, as this node reaches it without the tunnel.
    kubernetes_service_host: Option<String> {
        key: "kubernetesServiceHost", Scalar,
        default: "" means "the API server of this node's kubelet, otherwise the cluster's Service",
        values: "a host name or an address without port, or nothing", parse: parse::optional_host,
    }
    /// Port of the API server at `kubernetesServiceHost`.
    kubernetes_service_port: u16 {
        key: "kubernetesServicePort", Scalar, default: "6443",
        values: "a port from 1 to 65535", parse: parse::port,
    }
    /// Kubeconfig with address and credentials, for an agent outside a pod.
    kubeconfig: Option<PathBuf> {
        key: "kubeconfig", Scalar, default: "" means "the pod's service account",
        values: "a path, or nothing", parse: parse::optional_path,
    }
    /// Kubeconfigs of kubelets. The first one that exists names the API server; only the server's
    /// address is read.
    kubelet_kubeconfigs: Vec<PathBuf> {
        key: "kubeletKubeconfigs", List,
        default: "/run/ipip/api-server.conf,/etc/kubernetes/kubelet.conf,/var/lib/rancher/k3s/agent/kubelet.kubeconfig,/var/lib/rancher/rke2/agent/kubelet.kubeconfig,/var/lib/k0s/kubelet.conf,/var/snap/microk8s/current/credentials/kubelet.config,/var/lib/kubelet/kubeconfig,/etc/kubernetes/kubeconfig-kubelet,/etc/kubernetes/kubelet/kubeconfig",
        values: "absolute paths, or nothing", parse: parse::absolute_paths,
    }
    /// Networks from which each node claims a block as its pod CIDR, for clusters whose Nodes have no pod CIDRs.
    /// Used only with the Kubernetes API as source of the nodes.
    cluster_pod_cidrs: Vec<Ipv4Network> {
        key: "clusterPodCIDRs", List, default: "" means "the pod CIDRs of the Nodes (spec.podCIDRs)",
        values: "disjoint IPv4 networks without host bits, like 10.42.0.0/16, or nothing",
        parse: parse::disjoint_networks,
    }
    /// Prefix length of the blocks of `clusterPodCIDRs`; 24 has addresses for 253 pods of a node.
    node_cidr_mask_size: u8 {
        key: "nodeCIDRMaskSize", Scalar, default: "24",
        values: "a number from 16 to 28, not below the prefix length of a network of clusterPodCIDRs",
        parse: parse::mask_size,
    }
    /// Networks in which every pod CIDR must lie, beside those of `clusterPodCIDRs`. No node can claim another range, whatever
    /// its Node says. Used only with the Kubernetes API as source of the nodes.
    pod_cidrs: Vec<Ipv4Network> {
        key: "podCIDRs", List,
        default: "" means "the ranges of kubeadm and kube-proxy (ConfigMaps kubeadm-config and kube-proxy), if they exist",
        values: "disjoint IPv4 networks without host bits, like 10.42.0.0/16, or nothing",
        parse: parse::disjoint_networks,
    }
    /// Networks of the cluster's Services, which no node can claim. Used only with the Kubernetes API as source of the nodes.
    service_cidrs: Vec<Ipv4Network> {
        key: "serviceCIDRs", List,
        default: "" means "the cluster's ServiceCIDR objects (Kubernetes 1.33), kubeadm's range, and the /24 of the Service kubernetes",
        values: "disjoint IPv4 networks without host bits, like 10.96.0.0/12, or nothing",
        parse: parse::disjoint_networks,
    }
    /// The inventory file.
    inventory: PathBuf {
        key: "inventory", Scalar, default: "/etc/ipip/inventory.yaml",
        values: "a path", parse: parse::path,
    }
    /// Folder on bpffs below which programs and maps are pinned.
    pin_root: PathBuf {
        key: "pinRoot", Scalar, default: "/sys/fs/bpf/ipip",
        values: "a path", parse: parse::path,
    }
    /// Folder for state that must survive a restart and is not pinned.
    state_dir: PathBuf {
        key: "stateDir", Scalar, default: "/var/lib/ipip",
        values: "a path", parse: parse::path,
    }
    /// Folder for files that are gone after a boot: the key of probes, which `prepare` writes.
    run_dir: PathBuf {
        key: "runDir", Scalar, default: "/run/ipip",
        values: "a path", parse: parse::path,
    }
    /// The public address of this node on which peers of two other realms agree, if nobody has stated its public endpoint.
    /// `suggest` reports it with the command that states it. `use` publishes it, if the source of the nodes is the
    /// Kubernetes API: two compromised peers can then choose the address to which other realms send this node's packets.
    learned_public_endpoint: LearnedEndpoint {
        key: "learnedPublicEndpoint", Scalar, default: "suggest",
        values: "suggest, use or ignore", parse: parse::learned_endpoint,
    }
    /// Encapsulation of paths between nodes that set none themselves.
    encapsulation: Encapsulation {
        key: "encapsulation", Scalar, default: "ipip",
        values: "ipip, udp or direct", parse: parse::encapsulation,
    }
    /// UDP port of the encapsulation `udp`.
    udp_port: u16 {
        key: "udpPort", Scalar, default: "5555",
        values: "a port from 1 to 65535", parse: parse::port,
    }
    /// Interfaces that carry tunnel packets.
    uplinks: Vec<String> {
        key: "uplinks", List, default: "" means "the interfaces of the routes to the peers",
        values: "names of interfaces, each at most 15 bytes, or nothing", parse: parse::interfaces,
    }
    /// Machines of this node's own network that are no nodes. They keep their addresses if a node of another realm has
    /// the same InternalIP, or a node of the own realm has it beside its first one. Resolvers, gateways and the API server
    /// always do.
    local_addresses: Vec<Ipv4Network> {
        key: "localAddresses", List, default: "" means "no other machines",
        values: "IPv4 addresses and networks, like 10.0.0.2 or 10.0.5.0/24, or nothing",
        parse: parse::networks,
    }
    /// Files that name this node's resolvers, in the form of resolv.conf(5). `prepare` copies the resolvers to the last one.
    resolver_files: Vec<PathBuf> {
        key: "resolverFiles", List,
        default: "/etc/resolv.conf,/run/systemd/resolve/resolv.conf,/run/ipip/resolv.conf",
        values: "absolute paths, or nothing", parse: parse::absolute_paths,
    }
    /// MTU of new pods, in bytes. `auto` derives it from the uplinks.
    mtu: Option<u16> {
        key: "mtu", Scalar, default: "auto",
        values: "auto, or bytes from 576 to 65535", parse: parse::mtu,
    }
    /// What happens to IP-in-IP packets (protocol 4) that come from no peer. `pass` hands them to the
    /// host, for nodes with another IPIP tunnel.
    foreign_ipip: ForeignIpip {
        key: "foreignIpip", Scalar, default: "drop",
        values: "drop or pass", parse: parse::foreign_ipip,
    }
    /// Whether packets from pods to addresses outside the cluster get the node's address (SNAT).
    masquerade: bool {
        key: "masquerade", Scalar, default: "true",
        values: "true or false", parse: parse::any,
    }
    /// Whether the chain FORWARD of iptables accepts packets from and to pods of this node, and drops by firewalls are
    /// reported. `false` leaves all firewalls to you.
    forward_accept: bool {
        key: "forwardAccept", Scalar, default: "true",
        values: "true or false", parse: parse::any,
    }
    /// Interfaces of this host whose machines may reach pods and remote nodes by routing through it, with its identity:
    /// a bridge with containers that are no pods, or a VPN. All others reach Services only.
    routed_interfaces: Vec<String> {
        key: "routedInterfaces", List, default: "" means "no interfaces",
        values: "names of interfaces, like docker0 or br-*, or nothing", parse: parse::interface_patterns,
    }
    /// How programs are attached. `auto` is `tcx` on Linux 6.6 or newer, otherwise `clsact`.
    attach: AttachMode {
        key: "attach", Scalar, default: "auto",
        values: "auto, tcx or clsact", parse: parse::any,
    }
    /// Folder from which the CNI plugins are installed on this host.
    cni_bin_source: Option<PathBuf> {
        key: "cniBinSource", Scalar, default: "" means "nothing is installed",
        values: "a path, or nothing", parse: parse::optional_path,
    }
    /// Folder of this host's CNI plugins.
    cni_bin_dir: PathBuf {
        key: "cniBinDir", Scalar, default: "/opt/cni/bin",
        values: "an absolute path", parse: parse::absolute_path,
    }
    /// Folder for the CNI configuration, such as `/etc/cni/net.d`. The host's container runtimes use
    /// the plugins as soon as it is there.
    cni_conf_dir: Option<PathBuf> {
        key: "cniConfDir", Scalar, default: "" means "no CNI configuration is written",
        values: "an absolute path, or nothing", parse: parse::optional_absolute_path,
    }
    /// Name of the file in `cniConfDir`. Runtimes use the first one by name.
    cni_conf_file: String {
        key: "cniConfFile", Scalar, default: "01-ipip.conflist",
        values: "a file name that ends in .conflist, such as 01-ipip.conflist", parse: parse::conflist,
    }
    /// Where the root of the host is mounted. `cniConfDir` is below it, and what `prepare` writes for and removes of
    /// other software.
    host_root: PathBuf {
        key: "hostRoot", Scalar, default: "/",
        values: "an absolute path", parse: parse::absolute_path,
    }
    /// Other pod networks whose leftovers `prepare` removes from this host: interfaces, routes, rules, iptables
    /// chains, CNI configurations (renamed to `*.ipip-bak`) and state. Nothing is removed of a network whose pods
    /// still run here.
    clean_up_after: Vec<String> {
        key: "cleanUpAfter", List, default: "" means "nothing is removed",
        values: "names out of flannel, calico, canal, cilium, kindnet and weave, or nothing",
        parse: parse::other_networks,
    }
    /// Address and port of `/livez` and `/readyz`.
    health: SocketAddr {
        key: "health", Scalar, default: "127.0.0.1:9878",
        values: "an address and a port, like 127.0.0.1:9878", parse: parse::any,
    }
    /// Drop events that each CPU may report in a second.
    events_per_second: u32 {
        key: "eventsPerSecond", Scalar, default: "10",
        values: "a number from 0 to 4294967295", parse: parse::any,
    }
    /// Filter of the log (`tracing_subscriber::EnvFilter`).
    log: String {
        key: "log", Scalar, default: "info",
        values: "error, warn, info, debug, trace or target=level pairs with commas between",
        parse: parse::log_filter,
    }
    /// Format of the log: text, or one JSON object a line.
    log_format: LogFormat {
        key: "logFormat", Scalar, default: "text",
        values: "text or json", parse: parse::log_format,
    }
}

impl Config {
    /// The pool from which this node claims its pod CIDR, if there is one.
    pub fn pod_pool(&self) -> Option<PodPool> {
        PodPool::new(&self.cluster_pod_cidrs, self.node_cidr_mask_size)
    }
}

/// The size of the blocks, if a network of the pool is smaller than a block.
fn larger_blocks_than_networks(texts: &Texts) -> Option<InvalidSetting> {
    const KEY: &str = "nodeCIDRMaskSize";
    let setting = SETTINGS.iter().find(|setting| setting.key == KEY)?;
    let (networks, _) = texts.get("clusterPodCIDRs")?;
    let (size, origin) = match texts.get(KEY) {
        Some((text, origin)) => (text.as_str(), origin.clone()),
        None => (setting.default, Origin::Default),
    };
    let networks = parse::disjoint_networks(networks)?;
    let parsed = parse::mask_size(size)?;
    networks
        .iter()
        .any(|network| network.prefix() > parsed)
        .then(|| InvalidSetting {
            key: KEY,
            value: size.to_owned(),
            origin,
            values: setting.values,
        })
}

impl Setting {
    /// The name of the flag, without dashes in front: `udp-port` for `udpPort`.
    pub fn flag(&self) -> String {
        self.words('-')
    }

    /// The name of the environment variable: `IPIP_UDP_PORT` for `udpPort`.
    pub fn variable(&self) -> String {
        format!("IPIP_{}", self.words('_').to_ascii_uppercase())
    }

    /// The default, or the meaning of an empty default.
    pub fn default_text(&self) -> &'static str {
        if self.default.is_empty() {
            self.unset
        } else {
            self.default
        }
    }

    fn words(&self, separator: char) -> String {
        let mut words = String::new();
        // As in Kubernetes' own keys, this word is in upper case.
        for c in self.key.replace("CIDR", "Cidr").chars() {
            if c.is_ascii_uppercase() {
                words.push(separator);
            }
            words.push(c.to_ascii_lowercase());
        }
        words
    }
}
