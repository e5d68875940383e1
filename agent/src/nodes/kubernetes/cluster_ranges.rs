//! The ranges of the cluster's pods and Services: from settings, otherwise from the objects in which Kubernetes and kubeadm
//! keep them.

use crate::{config::Config, nodes::inventory::Fence, send_if_new::send_if_new};
use ipnetwork::Ipv4Network;
use k8s_openapi::api::{
    core::v1::ConfigMap, discovery::v1::EndpointSlice, networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client,
    api::ListParams,
    runtime::{utils::Backoff, watcher::DefaultBackoff},
};
use serde::Deserialize;
use std::{collections::BTreeSet, env, net::Ipv4Addr, time::Duration};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

/// Time between two reads.
const INTERVAL: Duration = Duration::from_secs(300);
/// Prefix length of the network around the ClusterIP of `kubernetes` that surely is part of the Service range. kubeadm
/// and the cloud providers use no smaller one, and the addresses of `kubernetes` and cluster DNS are among the first ones.
const LEAST_SERVICE_RANGE: u8 = 24;

/// What the cluster says about its ranges.
#[derive(Debug, Default)]
struct Found {
    /// `networking` of kubeadm's `ClusterConfiguration`.
    kubeadm: Networking,
    /// `clusterCIDR` of kube-proxy's configuration.
    kube_proxy: String,
    /// `spec.cidrs` of all ServiceCIDR objects.
    service_cidrs: Vec<String>,
    /// The addresses behind the Service `kubernetes`.
    api_servers: Vec<String>,
    /// The ClusterIP of `kubernetes`.
    cluster_ip: Option<Ipv4Addr>,
}

#[derive(Debug, Default, Deserialize)]
struct ClusterConfiguration {
    #[serde(default)]
    networking: Networking,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    #[serde(default)]
    pod_subnet: String,
    #[serde(default)]
    service_subnet: String,
}

#[derive(Debug, Default, Deserialize)]
struct KubeProxyConfiguration {
    #[serde(default, rename = "clusterCIDR")]
    cluster_cidr: String,
}

/// Sends the ranges now and whenever they change, until the receiver is dropped. It never sends `None`: the ranges are known
/// after the API server has answered once.
pub async fn follow(client: Client, config: Config, fence: watch::Sender<Option<Fence>>) {
    let mut backoff = DefaultBackoff::default();
    loop {
        let pause = match read(&client).await {
            Ok(found) => {
                let now = fence_of(&config, &found);
                if send_if_new(&fence, Some(now.clone())) {
                    log(&now);
                }
                backoff.reset();
                INTERVAL
            }
            Err(error) => {
                warn!(%error, "cannot read the ranges of the cluster");
                backoff.next().unwrap_or(INTERVAL)
            }
        };
        tokio::select! {
            () = fence.closed() => return,
            () = sleep(pause) => {}
        }
    }
}

fn log(fence: &Fence) {
    let text = |networks: &[Ipv4Network]| match networks {
        [] => "unknown".to_owned(),
        networks => {
            let texts: Vec<String> = networks.iter().map(ToString::to_string).collect();
            texts.join(",")
        }
    };
    info!(
        pods = text(&fence.pods),
        services = text(&fence.services),
        "claims of nodes are limited to these ranges"
    );
    if fence.pods.is_empty() {
        warn!(
            remedy = "set podCIDRs",
            "the cluster's pod ranges are not known, so pod CIDRs of nodes are only compared with the Nodes"
        );
    }
}

async fn read(client: &Client) -> Result<Found, kube::Error> {
    let text = |map: Option<ConfigMap>, key: &str| map?.data?.remove(key);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let kubeadm = text(
        readable(maps.get("kubeadm-config").await)?,
        "ClusterConfiguration",
    );
    let kube_proxy = text(readable(maps.get("kube-proxy").await)?, "config.conf");
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let ranges = readable(ranges.list(&ListParams::default()).await)?;
    let ranges = ranges.into_iter().flatten().filter_map(|it| it.spec?.cidrs);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let slice = readable(slices.get("kubernetes").await)?;
    let endpoints = slice.into_iter().flat_map(|it| it.endpoints);
    Ok(Found {
        kubeadm: yaml::<ClusterConfiguration>(kubeadm).networking,
        kube_proxy: yaml::<KubeProxyConfiguration>(kube_proxy).cluster_cidr,
        service_cidrs: ranges.flatten().collect(),
        api_servers: endpoints.flat_map(|it| it.addresses).collect(),
        cluster_ip: env::var("KUBERNETES_SERVICE_HOST")
            .ok()
            .and_then(|it| it.parse().ok()),
    })
}

/// The object; `None` if it does not exist, or the agent may not read it.
fn readable<T>(found: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            warn!(
                error = status.message,
                "an object with ranges of the cluster is not readable; remedy: kubectl apply -f manifests/base/rbac.yaml, or set podCIDRs and serviceCIDRs"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The fields that are needed of a document; the defaults if it has another form.
fn yaml<T: for<'a> Deserialize<'a> + Default>(text: Option<String>) -> T {
    let parsed = text.map(|text| serde_saphyr::from_str(&text));
    parsed.and_then(Result::ok).unwrap_or_default()
}

/// The ranges of the settings where they are set, otherwise everything that was found.
fn fence_of(config: &Config, found: &Found) -> Fence {
    let pods = if config.pod_cidrs.is_empty() {
        [list(&found.kubeadm.pod_subnet), list(&found.kube_proxy)].concat()
    } else {
        config.pod_cidrs.clone()
    };
    let pods = pods
        .into_iter()
        .chain(config.cluster_pod_cidrs.iter().copied());
    let services = if config.service_cidrs.is_empty() {
        let mut services = list(&found.kubeadm.service_subnet);
        services.extend(found.service_cidrs.iter().flat_map(|it| list(it)));
        if services.is_empty() {
            let around = |ip| Ipv4Network::new(ip, LEAST_SERVICE_RANGE).ok();
            services.extend(found.cluster_ip.and_then(around).map(clean));
        }
        services
    } else {
        config.service_cidrs.clone()
    };
    let api_servers = found.api_servers.iter().filter_map(|it| it.parse().ok());
    Fence {
        pods: distinct(pods),
        services: distinct(services),
        api_servers: api_servers.collect(),
    }
}

/// The IPv4 networks of a list with commas between.
fn list(text: &str) -> Vec<Ipv4Network> {
    let parts = text.split(',').map(str::trim).filter(|it| it.contains('/'));
    let networks = parts.filter_map(|it| it.parse().ok());
    networks.map(clean).collect()
}

/// The network without host bits.
fn clean(network: Ipv4Network) -> Ipv4Network {
    Ipv4Network::new(network.network(), network.prefix()).unwrap_or(network)
}

fn distinct(networks: impl IntoIterator<Item = Ipv4Network>) -> Vec<Ipv4Network> {
    let networks: BTreeSet<Ipv4Network> = networks.into_iter().collect();
    networks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_pairs;

    fn networks(texts: &[&str]) -> Vec<Ipv4Network> {
        texts.iter().map(|it| it.parse().unwrap()).collect()
    }

    fn kubeadm() -> Found {
        let text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: 10.42.0.0/16,fd00:42::/56\n  serviceSubnet: 10.43.0.0/16\n";
        Found {
            kubeadm: yaml::<ClusterConfiguration>(Some(text.into())).networking,
            kube_proxy: yaml::<KubeProxyConfiguration>(Some(
                "clusterCIDR: 10.42.0.0/16\nmode: nftables\n".into(),
            ))
            .cluster_cidr,
            service_cidrs: vec!["10.43.0.0/16".into(), "fd00:43::/112".into()],
            api_servers: vec!["10.0.0.11".into(), "fd00::1".into()],
            cluster_ip: Some([10, 43, 0, 1].into()),
        }
    }

    #[test]
    fn the_ranges_of_kubeadm_and_of_the_service_cidrs_are_the_default() {
        let fence = fence_of(&from_pairs("a1", &[]), &kubeadm());
        assert_eq!(fence.pods, networks(&["10.42.0.0/16"]));
        assert_eq!(fence.services, networks(&["10.43.0.0/16"]));
        assert_eq!(fence.api_servers, BTreeSet::from([[10, 0, 0, 11].into()]));
    }

    #[test]
    fn settings_replace_what_is_found_and_the_pool_is_always_one_of_the_pods() {
        let pairs = [
            ("podCIDRs", "10.50.0.0/16"),
            ("serviceCIDRs", "10.60.0.0/20"),
            ("clusterPodCIDRs", "10.70.0.0/16"),
        ];
        let fence = fence_of(&from_pairs("a1", &pairs), &kubeadm());
        assert_eq!(fence.pods, networks(&["10.50.0.0/16", "10.70.0.0/16"]));
        assert_eq!(fence.services, networks(&["10.60.0.0/20"]));
        let fence = fence_of(&from_pairs("a1", &pairs[2..]), &kubeadm());
        assert_eq!(fence.pods, networks(&["10.42.0.0/16", "10.70.0.0/16"]));
    }

    #[test]
    fn without_any_object_the_24_of_the_service_kubernetes_is_known() {
        let found = Found {
            cluster_ip: Some([10, 43, 0, 1].into()),
            kubeadm: yaml::<ClusterConfiguration>(Some("networking: [".into())).networking,
            ..Found::default()
        };
        let fence = fence_of(&from_pairs("a1", &[]), &found);
        assert_eq!(fence.pods, []);
        assert_eq!(fence.services, networks(&["10.43.0.0/24"]));
    }
}
