//! Services as kube-proxy writes them in iptables mode: the rules of a cluster with 2,000 of them.

use anyhow::{Context, Result};
use ipip_testkit::{host::Host, shell};
use std::{fmt::Write, net::Ipv4Addr, process::Command};

/// How many Services there are, each with one port and one endpoint.
pub const SERVICES: usize = 2000;
/// The ClusterIP of the Services whose endpoint is the server.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
/// The range of all pods. kube-proxy masquerades connections to a ClusterIP from outside of it.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";

/// kube-proxy's tables `nat` and `filter`, with placeholders for the chains and rules of the Services.
const TABLES: &str = include_str!("kube-proxy.rules");

/// A Service with one port and one endpoint.
struct KubeProxyService {
    cluster_ip: Ipv4Addr,
    port: u16,
    endpoint: Ipv4Addr,
    target_port: u16,
}

/// Loads the rules on `node`. Services for `ports` of `server` are in the middle of the list: kube-proxy's
/// order is arbitrary, so on average a packet traverses half of the rules before its own.
pub fn install(node: &Host, server: Ipv4Addr, ports: &[u16]) -> Result<()> {
    restore(node, &rules(server, ports)).context("cannot load kube-proxy's rules")
}

/// Adds rules in the format of `iptables-save` to the rules of the node.
pub fn restore(node: &Host, rules: &str) -> Result<()> {
    let mut command = Command::new("iptables-restore");
    command.arg("--noflush");
    node.enter(|| shell::run_with_input(&mut command, rules))?
        .with_context(|| format!("iptables-restore in {}", node.name()))?;
    Ok(())
}

fn rules(server: Ipv4Addr, ports: &[u16]) -> String {
    let mut services: Vec<KubeProxyService> = (0..SERVICES - ports.len())
        .map(KubeProxyService::unused)
        .collect();
    let own = ports.iter().map(|port| KubeProxyService {
        cluster_ip: CLUSTER_IP,
        port: *port,
        endpoint: server,
        target_port: *port,
    });
    let middle = services.len() / 2;
    services.splice(middle..middle, own);

    let (mut chains, mut rules) = (String::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        service.write(number, &mut chains, &mut rules);
    }
    TABLES
        .replace("@CHAINS@\n", &chains)
        .replace("@RULES@\n", &rules)
}

impl KubeProxyService {
    /// A Service that no client connects to; its endpoint does not exist.
    fn unused(number: usize) -> Self {
        let [_, _, high, low] = (number as u32).to_be_bytes();
        Self {
            cluster_ip: Ipv4Addr::new(10, 96, high, low),
            port: 80,
            endpoint: Ipv4Addr::new(10, 42, 200 + high, low),
            target_port: 8080,
        }
    }

    /// Appends its chains and its rules in table `nat`.
    fn write(&self, number: usize, chains: &mut String, rules: &mut String) {
        let Self {
            cluster_ip,
            port,
            endpoint,
            target_port,
        } = self;
        let name = format!("default/service-{number}:http");
        // kube-proxy's names end with 16 characters of a hash.
        let svc = format!("KUBE-SVC-{number:016}");
        let sep = format!("KUBE-SEP-{number:016}");
        let to_cluster_ip = format!(
            "-d {cluster_ip}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport {port}"
        );
        // Writing to a String cannot fail.
        let _ = write!(chains, ":{svc} - [0:0]\n:{sep} - [0:0]\n");
        let _ = write!(
            rules,
            "-A KUBE-SERVICES {to_cluster_ip} -j {svc}\n\
             -A {svc} ! -s {CLUSTER_CIDR} {to_cluster_ip} -j KUBE-MARK-MASQ\n\
             -A {svc} -m comment --comment \"{name} -> {endpoint}:{target_port}\" -j {sep}\n\
             -A {sep} -s {endpoint}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ\n\
             -A {sep} -p tcp -m comment --comment \"{name}\" -m tcp -j DNAT \
             --to-destination {endpoint}:{target_port}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_rules_are_in_the_middle_of_two_thousand() {
        let rules = rules(Ipv4Addr::new(10, 42, 3, 2), &[5100, 5101]);
        let services: Vec<&str> = rules
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES -d "))
            .collect();
        assert_eq!(services.len(), SERVICES);
        let own = services.iter().position(|it| it.contains("10.96.255.1/32"));
        assert_eq!(own, Some(999));
        assert!(rules.contains("--to-destination 10.42.3.2:5101"));
        assert!(!rules.contains('@'), "a placeholder is left");
    }
}
