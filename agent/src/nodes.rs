//! The nodes of the cluster: node sources, inventory, and paths between nodes.

pub mod inventory;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod path;
pub mod public_address;
pub mod seen;

mod file;

pub use file::FileSource;

use crate::{
    config::{Config, NodeSourceKind},
    nodes::{inventory::Inventory, public_address::Learned},
    probe_key::PublicKey,
    problems::Problem,
};
use std::{collections::BTreeSet, future::Future, net::Ipv4Addr};
use tokio::sync::{mpsc::Sender, watch};
use tracing::{info, warn};

/// The current inventory of a source. After a refusal the last valid inventory stays in use.
pub type Update = Result<Inventory, Refusal>;

/// The content of a source is refused as a whole.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct Refusal {
    /// The reason.
    pub why: String,
    /// Whether the source is only incomplete for now, which is no fault.
    pub waits: bool,
    /// Whether the node is not ready meanwhile, also with a valid inventory in use.
    pub blocks: bool,
}

impl Refusal {
    /// A refusal because of a fault.
    pub fn because(why: impl ToString) -> Self {
        Self {
            why: why.to_string(),
            waits: false,
            blocks: false,
        }
    }

    /// A refusal because the source is incomplete for now.
    pub fn until(why: impl ToString) -> Self {
        Self {
            waits: true,
            ..Self::because(why)
        }
    }
}

/// Publishes the nodes of the cluster, now and whenever they change.
pub trait NodeSource {
    /// Sends the current state and then each change, until the receiver is dropped. An unchanged state
    /// is not sent again.
    fn watch(self, updates: Sender<Update>) -> impl Future<Output = ()> + Send;
}

/// The state of this node's agent, for sources that publish it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// `Ok` if programs are attached and maps are in sync, otherwise the reason; `None` until the first
    /// reconciliation.
    pub ready: Option<Result<(), String>>,
    /// The MTU of new pods, in bytes.
    pub pod_mtu: Option<u32>,
    /// InternalIPs of other nodes that a machine in this node's own network has, too.
    pub lan_conflicts: BTreeSet<Ipv4Addr>,
    /// The public address of this node as peers see it.
    pub learned_endpoint: Learned,
    /// What an operator should correct on this host.
    pub problems: Vec<Problem>,
}

/// The configured node source cannot be used by this program.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "nodeSource: \"kubernetes\" ({0}) cannot be used: this ipip-agent is built without the Kubernetes client; remedy: nodeSource: file, or build it with the cargo feature `kubernetes`"
)]
pub struct NoKubernetesClient(&'static str);

/// Chooses the node source that `config` names and sends its updates to `updates` from a task.
/// `probe_key` is the public key of this node and `report` its state, for a source that publishes them.
///
/// # Errors
/// The source is not part of this build.
pub fn start(
    config: &Config,
    probe_key: Option<PublicKey>,
    report: watch::Receiver<Report>,
    updates: Sender<Update>,
) -> Result<(), NoKubernetesClient> {
    let (kind, why) = choose(config, |name| std::env::var(name).ok());
    info!(source = ?kind, why, "node source chosen");
    match kind {
        #[cfg(feature = "kubernetes")]
        NodeSourceKind::Kubernetes => {
            let source = kubernetes::KubernetesSource::new(config.clone(), probe_key, report);
            tokio::spawn(source.watch(updates));
        }
        #[cfg(not(feature = "kubernetes"))]
        NodeSourceKind::Kubernetes => {
            drop((report, probe_key));
            return Err(NoKubernetesClient(why));
        }
        NodeSourceKind::File | NodeSourceKind::Auto => {
            if let Some(pool) = config.pod_pool() {
                warn!(%pool, remedy = "nodeSource: kubernetes", "clusterPodCIDRs is not used: an inventory file gives each node its pod CIDRs");
            }
            let source = FileSource::new(&config.inventory, &config.node_name);
            tokio::spawn(source.watch(updates));
        }
    }
    Ok(())
}

/// The node source that `config` selects, and the reason. `environment` reads a variable; in a pod
/// Kubernetes sets `KUBERNETES_SERVICE_HOST`.
fn choose(
    config: &Config,
    environment: impl Fn(&str) -> Option<String>,
) -> (NodeSourceKind, &'static str) {
    let in_pod = environment("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty());
    match config.node_source {
        NodeSourceKind::Auto if in_pod => (
            NodeSourceKind::Kubernetes,
            "nodeSource is auto, and KUBERNETES_SERVICE_HOST is set as in a pod",
        ),
        NodeSourceKind::Auto if config.kubeconfig.is_some() => (
            NodeSourceKind::Kubernetes,
            "nodeSource is auto, and kubeconfig is set",
        ),
        NodeSourceKind::Auto => (
            NodeSourceKind::File,
            "nodeSource is auto, and this is not a pod: KUBERNETES_SERVICE_HOST is not set",
        ),
        kind => (kind, "nodeSource names it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    fn chosen(pairs: &[(&'static str, &str)], service_host: Option<&str>) -> NodeSourceKind {
        let environment = |name: &str| {
            let is_host = name == "KUBERNETES_SERVICE_HOST";
            service_host.filter(|_| is_host).map(ToOwned::to_owned)
        };
        choose(&from_pairs("a1", pairs), environment).0
    }

    #[test]
    fn auto_is_kubernetes_in_a_pod_or_with_a_kubeconfig_and_otherwise_the_file() {
        use NodeSourceKind::{File, Kubernetes};
        assert_eq!(chosen(&[], Some("10.96.0.1")), Kubernetes);
        assert_eq!(chosen(&[("kubeconfig", "/k")], None), Kubernetes);
        assert_eq!(chosen(&[], None), File);
        assert_eq!(chosen(&[], Some("")), File);
        assert_eq!(chosen(&[("nodeSource", "file")], Some("10.96.0.1")), File);
    }

    #[cfg(not(feature = "kubernetes"))]
    #[tokio::test]
    async fn a_build_without_the_kubernetes_client_refuses_the_node_source_with_its_remedy() {
        let config = from_pairs("a1", &[("nodeSource", "kubernetes")]);
        let (updates, _receiver) = tokio::sync::mpsc::channel(1);
        let (_sender, report) = watch::channel(Report::default());
        let refusal = start(&config, None, report, updates)
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("remedy: nodeSource: file"), "{refusal}");
    }
}
