//! A cluster whose clouds are not connected. Proves that the simulated clouds are realistic: connections that fail
//! between real clouds without this project fail here, too.

use crate::print_step;
use anyhow::{Context, Result, ensure};
use ipip_lab::kubernetes::{self, Cluster, PodNetwork, ProxyMode, Settings};
use ipip_testkit::{harness::LoneTest, http, lone_tests, wait};
use serde_json::{Value, json};
use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

pub const TESTS: &[LoneTest] = lone_tests![
    a_bare_cluster_with_iptables_serves_each_cloud_alone_and_leaves_nothing_behind,
    a_bare_cluster_with_nftables_serves_each_cloud_alone_and_leaves_nothing_behind,
];

fn a_bare_cluster_with_iptables_serves_each_cloud_alone_and_leaves_nothing_behind() -> Result<()> {
    bare(ProxyMode::Iptables)
}

fn a_bare_cluster_with_nftables_serves_each_cloud_alone_and_leaves_nothing_behind() -> Result<()> {
    bare(ProxyMode::Nftables)
}

fn bare(proxy: ProxyMode) -> Result<()> {
    let settings = Settings {
        proxy,
        network: PodNetwork::Bridge,
        ..Settings::default()
    };
    let cluster = Cluster::start(settings, &print_step)?;
    nodes_have_the_addresses_of_their_clouds(&cluster)?;
    timed("a pod on each node", || pods_run(&cluster))?;
    timed("a Service", || a_service_works(&cluster))?;
    logs_work_only_in_the_cloud_of_the_control_plane(&cluster)?;
    timed("CoreDNS", || names_resolve_beside_the_api_server(&cluster))?;
    timed("metrics-server", || {
        metrics_cover_only_the_cloud_of_metrics_server(&cluster)
    })?;
    let prefix = cluster.prefix().to_string();
    ensure!(
        !kubernetes::leftovers(&prefix)?.is_empty(),
        "no trace of a running cluster was found, so the search for leftovers proves nothing"
    );
    timed("removal", || {
        drop(cluster);
        Ok(())
    })?;
    let left = kubernetes::leftovers(&prefix)?;
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(())
}

fn nodes_have_the_addresses_of_their_clouds(cluster: &Cluster) -> Result<()> {
    for (_, spec) in cluster.nodes() {
        let node = cluster.get(&format!("node/{}", spec.name), None)?;
        let private = spec.addresses[0].to_string();
        ensure!(
            address(&node, "InternalIP") == Some(&private),
            "{} should have the InternalIP {private}: {}",
            spec.name,
            node["status"]["addresses"]
        );
        let public = spec.public.context("a node without a public address")?;
        let public = public.to_string();
        let (found, by) = if cluster.settings().has_provider(spec) {
            (address(&node, "ExternalIP"), "its provider")
        } else {
            let annotations = &node["metadata"]["annotations"];
            (annotations["ipip.dev/public-endpoint"].as_str(), "hand")
        };
        ensure!(
            found == Some(&public),
            "{} should have the public address {public}, set by {by}, not {found:?}",
            spec.name
        );
    }
    Ok(())
}

fn pods_run(cluster: &Cluster) -> Result<()> {
    for (_, spec) in cluster.nodes() {
        let name = format!("on-{}", spec.name);
        let script = format!(
            "echo this is {node}; echo {node} > /tmp/index.html; exec httpd -f -p 80 -h /tmp",
            node = spec.name
        );
        cluster.run_pod(&name, &spec.name, &script)?;
    }
    for (_, spec) in cluster.nodes() {
        let pod = cluster.wait_pod(&format!("on-{}", spec.name))?;
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        ensure!(
            cluster.settings().pod_network.contains(
                address
                    .parse()
                    .with_context(|| format!("podIP {address}"))?
            ),
            "the pod on {} has the address {address}",
            spec.name
        );
    }
    Ok(())
}

/// Connects to a ClusterIP whose pod is on the client's node. Without a pod network across nodes, other ClusterIPs do
/// not work.
fn a_service_works(cluster: &Cluster) -> Result<()> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": { "selector": { "app": "on-b1" }, "ports": [{ "port": 8080, "targetPort": 80 }] },
    });
    cluster.apply(&service.to_string())?;
    let service = cluster.get("service/web", None)?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let address = SocketAddrV4::new(address.parse().context("the Service's address")?, 8080);
    let node = cluster.machine("b1")?;
    let mut answer = String::new();
    wait::until("the Service answers", || {
        answer = http::get_text(node, address, "/index.html").unwrap_or_default();
        Ok(!answer.is_empty())
    })?;
    ensure!(answer.trim() == "b1", "the Service answered {answer}");
    Ok(())
}

fn logs_work_only_in_the_cloud_of_the_control_plane(cluster: &Cluster) -> Result<()> {
    let control_plane = &cluster.settings().control_plane()?.cloud;
    for (_, spec) in cluster.nodes() {
        let pod = format!("on-{}", spec.name);
        // The kernel gives up address resolution after at most four seconds.
        let asked = cluster.kubectl_output(&["logs", &pod, "--request-timeout=8s"])?;
        let said = String::from_utf8_lossy(&asked.stdout);
        let error = String::from_utf8_lossy(&asked.stderr);
        if spec.cloud == *control_plane {
            let wanted = format!("this is {}", spec.name);
            ensure!(said.trim() == wanted, "logs of {pod}: {said}{error}");
        } else {
            ensure!(
                error.contains("no route to host") || error.contains("unreachable"),
                "logs of {pod}, in another cloud, should not be reachable: {said}{error}"
            );
        }
    }
    Ok(())
}

/// CoreDNS and its client are on the API server's own node. On another node, CoreDNS could not watch Services.
fn names_resolve_beside_the_api_server(cluster: &Cluster) -> Result<()> {
    let service = cluster.get("service/web", None)?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let lookup = ["exec", "on-a1", "--", "nslookup"];
    let lookup = [&lookup[..], &["web.default.svc.cluster.local"]].concat();
    // kube-proxy needs some time to see the Service.
    wait::until("a pod resolves the name of a Service", || {
        let output = cluster.kubectl_output(&lookup)?;
        Ok(String::from_utf8_lossy(&output.stdout).contains(address))
    })
}

fn metrics_cover_only_the_cloud_of_metrics_server(cluster: &Cluster) -> Result<()> {
    cluster.install_metrics("a1")?;
    let mut seen = Vec::new();
    wait::within(Duration::from_secs(120), "a1 and a2 have metrics", || {
        let output = cluster.kubectl_output(&["top", "nodes", "--no-headers"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let has_metrics = |line: &&str| !line.contains("<unknown>");
        seen = text
            .lines()
            .filter(has_metrics)
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect();
        Ok(seen.len() >= 2)
    })?;
    ensure!(seen == ["a1", "a2"], "metrics of {seen:?}");
    Ok(())
}

fn address<'a>(node: &'a Value, kind: &str) -> Option<&'a str> {
    node["status"]["addresses"]
        .as_array()?
        .iter()
        .find(|address| address["type"] == kind)?["address"]
        .as_str()
}

fn timed(what: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    run().with_context(|| what.to_string())?;
    print_step(what, began.elapsed());
    Ok(())
}
