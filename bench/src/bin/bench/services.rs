//! Services as kube-proxy writes them in iptables mode: the rules of a cluster with 2,000 of them.

use anyhow::{Context, Result};
use ipip_testkit::{host::Host, shell};
use std::{fmt::Write, net::Ipv4Addr, process::Command};

/// Services of one port and one endpoint each.
pub const COUNT: usize = 2000;
/// The ClusterIP behind which the server stands.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 1);
/// Pods' addresses: whoever else dials a ClusterIP is masqueraded.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";

/// Loads the rules on `node`. Those of `server`, by `ports`, stand in the midst of the others:
/// kube-proxy's order is any, and a packet meets half of the rules before its own on average.
pub fn install(node: &Host, server: Ipv4Addr, ports: &[u16]) -> Result<()> {
    restore(node, &rules(server, ports)).context("kube-proxy's rules")
}

/// Adds rules, as `iptables-save` writes them, to those that are there.
pub fn restore(node: &Host, rules: &str) -> Result<()> {
    let mut command = Command::new("iptables-restore");
    command.arg("--noflush");
    node.enter(|| shell::run_with_input(&mut command, rules))?
        .with_context(|| format!("rules in {}", node.name()))?;
    Ok(())
}

/// kube-proxy's tables `nat` and `filter`.
fn rules(server: Ipv4Addr, ports: &[u16]) -> String {
    let others = COUNT - ports.len();
    let all = (0..others).map(|number| {
        let [_, _, high, low] = (number as u32).to_be_bytes();
        let cluster = Ipv4Addr::new(10, 96, high, low);
        // A pod that is not there: nobody dials this Service.
        (cluster, 80, Ipv4Addr::new(10, 42, 200 + high, low), 8080)
    });
    let own = ports.iter().map(|port| (CLUSTER_IP, *port, server, *port));
    let (before, after): (Vec<_>, Vec<_>) = all.enumerate().partition(|(n, _)| *n < others / 2);
    let services = before
        .into_iter()
        .map(|(_, service)| service)
        .chain(own)
        .chain(after.into_iter().map(|(_, service)| service));

    let (mut chains, mut rules) = (String::new(), String::new());
    for (number, (cluster, port, endpoint, target)) in services.enumerate() {
        let name = format!("default/service-{number}:http");
        // kube-proxy's names end with 16 characters of a hash.
        let (svc, sep) = (
            format!("KUBE-SVC-{number:016}"),
            format!("KUBE-SEP-{number:016}"),
        );
        let to_cluster = format!(
            "-d {cluster}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport {port}"
        );
        // Writing to a String cannot fail.
        let _ = write!(chains, ":{svc} - [0:0]\n:{sep} - [0:0]\n");
        let _ = write!(
            rules,
            "-A KUBE-SERVICES {to_cluster} -j {svc}\n\
             -A {svc} ! -s {CLUSTER_CIDR} {to_cluster} -j KUBE-MARK-MASQ\n\
             -A {svc} -m comment --comment \"{name} -> {endpoint}:{target}\" -j {sep}\n\
             -A {sep} -s {endpoint}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ\n\
             -A {sep} -p tcp -m comment --comment \"{name}\" -m tcp -j DNAT \
             --to-destination {endpoint}:{target}\n"
        );
    }
    format!(
        "*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
{rules}-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_rules_stand_in_the_midst_of_two_thousand() {
        let rules = rules(Ipv4Addr::new(10, 42, 3, 2), &[5100, 5101]);
        let services: Vec<&str> = rules
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES -d "))
            .collect();
        assert_eq!(services.len(), COUNT);
        let own = services.iter().position(|it| it.contains("10.96.255.1/32"));
        assert_eq!(own, Some(999));
        assert!(rules.contains("--to-destination 10.42.3.2:5101"));
    }
}
