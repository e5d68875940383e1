//! Uninstalling leaves each node as it was.

use crate::print_step;
use anyhow::{Result, ensure};
use ipip_lab::kubernetes::{Cluster, MANIFESTS, Machine, Settings};
use ipip_testkit::{harness::LoneTest, lone_tests, wait};
use std::{collections::BTreeSet, time::Duration};

/// The state of a node, line by line.
type Traces = BTreeSet<String>;

pub const TESTS: &[LoneTest] =
    lone_tests![deleting_the_manifests_and_uninstalling_leaves_each_node_as_it_was];

/// Uses the documented commands.
fn deleting_the_manifests_and_uninstalling_leaves_each_node_as_it_was() -> Result<()> {
    let cluster = Cluster::start(Settings::default(), &print_step)?;
    let before = all_traces(&cluster)?;
    cluster.install()?;
    for (_, spec) in cluster.nodes() {
        cluster.run_pod(&format!("on-{}", spec.name), &spec.name, "sleep 1000")?;
    }
    for (_, spec) in cluster.nodes() {
        cluster.wait_pod(&format!("on-{}", spec.name))?;
    }
    let during = all_traces(&cluster)?;
    for ((node, before), (_, during)) in before.iter().zip(&during) {
        for kind in ["link ", "route ", "nft ", "bpffs ", "cni "] {
            let new = during.difference(before).any(|line| line.starts_with(kind));
            ensure!(
                new,
                "{node}: the installation should add a line with {kind}"
            );
        }
    }
    cluster.kubectl(&["delete", "pods", "--all"])?;
    // The API objects are gone at once, but the runtime still needs our list to delete the pods.
    for machine in cluster.machines() {
        wait::within(Duration::from_secs(90), "the pods are gone", || {
            Ok(!machine.run("ip", &["-o", "link"])?.contains(": pod"))
        })?;
    }
    cluster.kubectl(&["delete", "--kustomize", MANIFESTS])?;
    let file = format!("{MANIFESTS}/uninstall.yaml");
    cluster.kubectl(&["apply", "-f", &file])?;
    cluster.wait_rollout("daemonset/ipip-uninstall")?;
    cluster.kubectl(&["delete", "-f", &file])?;
    let mut differences = Vec::new();
    let gone = wait::until("each node is as it was", || {
        differences.clear();
        for ((node, before), (_, after)) in before.iter().zip(&all_traces(&cluster)?) {
            let left = after
                .difference(before)
                .map(|line| format!("{node} + {line}"));
            let lost = before
                .difference(after)
                .map(|line| format!("{node} - {line}"));
            differences.extend(left.chain(lost));
        }
        Ok(differences.is_empty())
    });
    ensure!(gone.is_ok(), "differences:\n{}", differences.join("\n"));
    Ok(())
}

fn all_traces(cluster: &Cluster) -> Result<Vec<(String, Traces)>> {
    let machines = cluster.machines().iter();
    machines
        .map(|machine| Ok((machine.hostname().into(), traces(machine)?)))
        .collect()
}

/// Links, addresses, routes, rules, nftables, pinned programs and maps, kernel settings, and files.
fn traces(machine: &Machine) -> Result<Traces> {
    const LISTS: [(&str, &str); 9] = [
        ("link", "ip -o link | sed 's/^[0-9]*: //'"),
        ("address", "ip -4 -o address | sed 's/^[0-9]*: //'"),
        ("route", "ip route show table all"),
        ("rule", "ip rule"),
        // Tables alone: kube-proxy and portmap change their own rules at any time.
        ("nft", "nft --stateless list tables"),
        ("iptables", "nft list chains | grep IPIP- || true"),
        ("bpffs", "find /sys/fs/bpf"),
        (
            "sysctl",
            "sysctl -a 2>/dev/null | grep '^net\\.' | grep -v 'conntrack_count\\|route.error\\|fastopen_key'",
        ),
        (
            "cni",
            "find /etc/cni /var/lib/ipip /run/ipip/*.conf 2>/dev/null || true",
        ),
    ];
    let mut traces = Traces::new();
    for (kind, script) in LISTS {
        let said = machine.run("sh", &["-c", script])?;
        traces.extend(said.lines().map(|line| format!("{kind} {line}")));
    }
    Ok(traces)
}
