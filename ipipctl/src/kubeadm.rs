//! `ipipctl kubeadm-config`: a kubeadm configuration for a cluster over several clouds. It uses
//! only its options, and reads nothing from this host.

mod documents;
mod parsers;

use anyhow::{Result, bail};
use clap::Args;
use documents::{
    ApiServer, Argument, BootstrapToken, Cluster, Discovery, Init, Join, KubeProxy,
    LocalApiEndpoint, Networking, Node, NodeRegistration,
};
use ipnetwork::Ipv4Network;
use parsers::{
    ca_cert_hash, endpoint, internal_ip, network, node_name, pod_cidr, realm, token, version,
};
use serde::Serialize;
use std::net::Ipv4Addr;

/// The port of the API server, which kubeadm uses by default.
const PORT: u16 = 6443;
/// The node label from which the agent reads the realm.
const REALM_LABEL: &str = "ipip.dev/realm";

/// The options of `kubeadm-config`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address or name by which every node reaches this node's API server
    #[arg(long, value_name = "IP|HOST", value_parser = endpoint)]
    #[arg(required_unless_present = "join", conflicts_with = "join")]
    public_endpoint: Option<String>,
    /// Range of all pods; each node gets a /24 of it
    #[arg(long, value_name = "CIDR", value_parser = pod_cidr)]
    #[arg(required_unless_present = "join", conflicts_with = "join")]
    pod_cidr: Option<Ipv4Network>,
    /// Range of Services
    #[arg(long, value_name = "CIDR", value_parser = network, default_value = "10.96.0.0/12")]
    #[arg(conflicts_with = "join")]
    service_cidr: Ipv4Network,
    /// Private address of this node; by default the one of its default route
    #[arg(long, value_name = "IP", value_parser = internal_ip)]
    internal_ip: Option<Ipv4Addr>,
    /// Name of this node; by default the host name
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    node_name: Option<String>,
    /// Realm of this node: nodes of one realm reach each other at their private addresses
    #[arg(long, value_name = "NAME", value_parser = realm)]
    realm: Option<String>,
    /// Version of the control plane; by default kubeadm's choice
    #[arg(long, value_name = "VERSION", value_parser = version, conflicts_with = "join")]
    kubernetes_version: Option<String>,
    /// For a node that joins: the public endpoint of the control plane
    #[arg(long, value_name = "IP|HOST", value_parser = endpoint)]
    #[arg(requires_all = ["token", "ca_cert_hash"])]
    join: Option<String>,
    /// For a node that joins: the token that `kubeadm token create` printed on the control plane
    #[arg(long, value_name = "TOKEN", value_parser = token, requires = "join")]
    token: Option<String>,
    /// For a node that joins: the hash that `kubeadm token create --print-join-command` printed
    #[arg(long, value_name = "HASH", value_parser = ca_cert_hash, requires = "join")]
    ca_cert_hash: Option<String>,
}

/// The configuration as YAML.
///
/// # Errors
/// Ranges that overlap, or that contain the node's address.
pub fn kubeadm_config(options: &Options) -> Result<String> {
    if let (Some(join), Some(token), Some(hash)) =
        (&options.join, &options.token, &options.ca_cert_hash)
    {
        return self::join(options, join, token, hash);
    }
    let (Some(endpoint), Some(pods)) = (&options.public_endpoint, options.pod_cidr) else {
        bail!("options are missing: use --public-endpoint and --pod-cidr, or --join");
    };
    let services = options.service_cidr;
    if pods.overlaps(services) {
        bail!(
            "--pod-cidr {pods} overlaps --service-cidr {services}: choose two ranges that do not \
             overlap"
        );
    }
    for (option, range) in [("--pod-cidr", pods), ("--service-cidr", services)] {
        if let Some(address) = options.internal_ip
            && range.contains(address)
        {
            bail!(
                "--internal-ip {address} is in {option} {range}: choose a range that no node's \
                 network uses"
            );
        }
    }
    init(options, endpoint, pods)
}

/// The three documents of `kubeadm init`.
fn init(options: &Options, endpoint: &str, pods: Ipv4Network) -> Result<String> {
    // The public address is on no interface, so the API server cannot listen on it.
    let local = options.internal_ip;
    let cert_sans = [endpoint.to_owned()].into_iter();
    let cert_sans = cert_sans.chain(local.map(|address| address.to_string()));
    let init = Init {
        local_api_endpoint: local.map(|advertise_address| LocalApiEndpoint { advertise_address }),
        node: node(options),
    };
    let cluster = Cluster {
        kubernetes_version: options.kubernetes_version.clone(),
        control_plane_endpoint: format!("{endpoint}:{PORT}"),
        api_server: ApiServer {
            cert_sans: cert_sans.collect(),
        },
        networking: Networking {
            pod_subnet: pods.to_string(),
            service_subnet: options.service_cidr.to_string(),
        },
    };
    let kube_proxy = KubeProxy {
        cluster_cidr: pods.to_string(),
    };
    let documents = [
        yaml(&init.document())?,
        yaml(&cluster.document())?,
        yaml(&kube_proxy.document())?,
    ];
    Ok(with_header("init", &documents.join("---\n")))
}

/// The document of `kubeadm join`.
fn join(options: &Options, endpoint: &str, token: &str, hash: &str) -> Result<String> {
    let join = Join {
        discovery: Discovery {
            bootstrap_token: BootstrapToken {
                api_server_endpoint: format!("{endpoint}:{PORT}"),
                token: token.into(),
                ca_cert_hashes: [hash.into()],
            },
        },
        node: node(options),
    };
    Ok(with_header("join", &yaml(&join.document())?))
}

fn node(options: &Options) -> Node {
    let address = options.internal_ip.map(|address| Argument {
        name: "node-ip",
        value: address.to_string(),
    });
    let realm = options.realm.as_ref().map(|realm| Argument {
        name: "node-labels",
        value: format!("{REALM_LABEL}={realm}"),
    });
    Node {
        node_registration: NodeRegistration {
            name: options.node_name.clone(),
            kubelet_extra_args: address.into_iter().chain(realm).collect(),
        },
    }
}

fn yaml(document: &impl Serialize) -> Result<String> {
    Ok(serde_saphyr::to_string(document)?)
}

fn with_header(command: &str, yaml: &str) -> String {
    format!(
        "# Made by `ipipctl kubeadm-config`; use it as `kubeadm {command} --config FILE`.\n{yaml}"
    )
}

#[cfg(test)]
mod tests;
