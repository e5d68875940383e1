//! The documents of a kubeadm configuration, with the fields that are set here.
//!
//! <https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/>

use serde::Serialize;
use std::net::Ipv4Addr;

const KUBEADM: &str = "kubeadm.k8s.io/v1beta4";
const KUBE_PROXY: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// A document with its type.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    fields: T,
}

/// The node on which `kubeadm init` runs.
#[derive(Serialize)]
pub struct Init {
    #[serde(rename = "localAPIEndpoint", skip_serializing_if = "Option::is_none")]
    pub local_api_endpoint: Option<LocalApiEndpoint>,
    #[serde(flatten)]
    pub node: Node,
}

/// The cluster.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    pub control_plane_endpoint: String,
    pub api_server: ApiServer,
    pub networking: Networking,
}

/// The settings of kube-proxy.
#[derive(Serialize)]
pub struct KubeProxy {
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
}

/// A node on which `kubeadm join` runs.
#[derive(Serialize)]
pub struct Join {
    pub discovery: Discovery,
    #[serde(flatten)]
    pub node: Node,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalApiEndpoint {
    pub advertise_address: Ipv4Addr,
}

#[derive(Serialize)]
pub struct ApiServer {
    #[serde(rename = "certSANs")]
    pub cert_sans: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Networking {
    pub pod_subnet: String,
    pub service_subnet: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Discovery {
    pub bootstrap_token: BootstrapToken,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootstrapToken {
    pub api_server_endpoint: String,
    pub token: String,
    pub ca_cert_hashes: [String; 1],
}

/// The registration of a node; left out if it is empty.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    #[serde(skip_serializing_if = "NodeRegistration::is_empty")]
    pub node_registration: NodeRegistration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRegistration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubelet_extra_args: Vec<Argument>,
}

#[derive(Serialize)]
pub struct Argument {
    pub name: &'static str,
    pub value: String,
}

impl NodeRegistration {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.kubelet_extra_args.is_empty()
    }
}

impl Init {
    pub fn document(self) -> Document<Self> {
        Document {
            api_version: KUBEADM,
            kind: "InitConfiguration",
            fields: self,
        }
    }
}

impl Cluster {
    pub fn document(self) -> Document<Self> {
        Document {
            api_version: KUBEADM,
            kind: "ClusterConfiguration",
            fields: self,
        }
    }
}

impl KubeProxy {
    pub fn document(self) -> Document<Self> {
        Document {
            api_version: KUBE_PROXY,
            kind: "KubeProxyConfiguration",
            fields: self,
        }
    }
}

impl Join {
    pub fn document(self) -> Document<Self> {
        Document {
            api_version: KUBEADM,
            kind: "JoinConfiguration",
            fields: self,
        }
    }
}
