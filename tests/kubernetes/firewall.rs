//! A firewall on a node of a real cluster.

use anyhow::Result;
use ipip_lab::kubernetes::scenarios::{SCENARIOS, Workloads};
use ipip_testkit::{harness::Test, tests};

/// The scenarios whose packets the host of the node forwards.
const FORWARDED: [&str; 3] = [
    "services_and_host_ports_reach_pods_of_every_cloud_from_pods_and_nodes",
    "node_ports_serve_the_internet_with_either_external_traffic_policy",
    "pods_of_every_cloud_resolve_names_through_coredns_in_one_of_them",
];

pub const TESTS: &[Test<Workloads>] =
    tests![a_forward_policy_of_drop_on_a_node_stops_neither_services_nor_dns_nor_node_ports];

fn a_forward_policy_of_drop_on_a_node_stops_neither_services_nor_dns_nor_node_ports(
    workloads: &Workloads,
) -> Result<()> {
    let b1 = workloads.cluster.machine("b1")?;
    b1.run("iptables", &["-P", "FORWARD", "DROP"])?;
    let scenarios = SCENARIOS.iter().filter(|it| FORWARDED.contains(&it.name));
    let tried = scenarios
        .map(|it| (it.attempt)(workloads))
        .collect::<Result<Vec<_>>>();
    let policy = b1.run("iptables", &["-S", "FORWARD"]);
    b1.run("iptables", &["-P", "FORWARD", "ACCEPT"])?;
    anyhow::ensure!(tried?.len() == FORWARDED.len(), "a scenario was renamed");
    anyhow::ensure!(policy?.starts_with("-P FORWARD DROP"));
    Ok(())
}
