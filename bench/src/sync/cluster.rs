//! A real API server with many nodes that exist only as objects.

use crate::peer_addresses::{self, internal_ip, pod_cidr, public_endpoint};
use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use ipip_lab::api_server::{ADDRESS, ApiServer};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::json;

/// The node whose agent is measured.
pub const OWN_NODE: &str = "own";
/// Requests at the same time while the nodes are written.
const PARALLEL: usize = 64;

/// The API server and its objects.
pub struct ApiCluster {
    /// The API server.
    pub server: ApiServer,
    /// How many nodes there are apart from [`OWN_NODE`].
    pub nodes: u32,
}

impl ApiCluster {
    /// Starts the API server and writes all objects.
    pub fn start(nodes: u32) -> Result<Self> {
        let server = ApiServer::start(&format!("ipip-sync-{}", std::process::id()))?;
        server.apply_manifests()?;
        let cluster = Self { server, nodes };
        eprintln!("writing {nodes} nodes");
        cluster.write_nodes()?;
        cluster.write_own_node()?;
        Ok(cluster)
    }

    fn write_nodes(&self) -> Result<()> {
        self.with_api(async |client| {
            let api = objects(client.clone());
            let nodes: Api<Node> = Api::all(client);
            let create = |number| {
                let (api, nodes) = (api.clone(), nodes.clone());
                async move {
                    let params = PostParams::default();
                    nodes.create(&params, &node(number)?).await?;
                    let created = api.create(&params, &ipip_node(number)?).await;
                    created.map_err(anyhow::Error::from)
                }
            };
            let requests = stream::iter(0..self.nodes).map(create);
            let created = requests.buffer_unordered(PARALLEL);
            created.try_for_each(async |_| Ok(())).await
        })
    }

    fn write_own_node(&self) -> Result<()> {
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": OWN_NODE},
            "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]},
        });
        self.server.apply(&node.to_string())?;
        let address = json!({"type": "InternalIP", "address": ADDRESS});
        let status = json!({"status": {"addresses": [address]}}).to_string();
        let patch = ["patch", "node", OWN_NODE, "--subresource=status", "-p"];
        let arguments: Vec<&str> = patch.into_iter().chain([status.as_str()]).collect();
        self.server.kubectl(&arguments).map(drop)
    }

    /// Runs `f` with a client whose sockets are in the server's network namespace.
    pub fn with_api<T: Send>(&self, f: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        let kubeconfig = Kubeconfig::read_from(self.server.admin_kubeconfig()?)?;
        self.server.host().enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
                f(Client::try_from(config)?).await
            })
        })?
    }
}

/// The IpipNodes.
pub fn objects(client: Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("ipip.dev", "v1alpha1", "IpipNode");
    Api::all_with(
        client,
        &ApiResource::from_gvk_with_plural(&kind, "ipipnodes"),
    )
}

/// The Node with this number, which backs its IpipNode.
fn node(number: u32) -> Result<Node> {
    let cidr = pod_cidr(number)?;
    Ok(serde_json::from_value(json!({
        "metadata": {"name": peer_addresses::name(number)},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": internal_ip(number)}]},
    }))?)
}

/// The IpipNode with this number.
fn ipip_node(number: u32) -> Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "ipip.dev/v1alpha1",
        "kind": "IpipNode",
        "metadata": {"name": peer_addresses::name(number)},
        "spec": {
            "internalIPs": [internal_ip(number)],
            "podCIDRs": [pod_cidr(number)?],
            "publicEndpoint": public_endpoint(number),
        },
    }))?)
}
