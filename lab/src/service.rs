//! Kubernetes Services, with rules like those of kube-proxy: DNAT in the node's netfilter.

use crate::node::LabNode;
use anyhow::{Context, Result};
use ipip_testkit::host::Host;
use std::net::SocketAddrV4;

/// A Service with one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its ClusterIP and port.
    pub cluster: SocketAddrV4,
    /// Its port on every address of a node.
    pub node_port: u16,
    /// Address and port of the pod that serves it.
    pub endpoint: SocketAddrV4,
    /// Whether the address of a NodePort's client is replaced by the node's (SNAT, `externalTrafficPolicy:
    /// Cluster`) or kept (`Local`).
    pub masquerade: bool,
}

/// The rules of one Service on one node. Dropping this value removes them.
#[derive(Debug)]
pub struct Installed<'a> {
    host: &'a Host,
    table: String,
}

impl Service {
    /// Loads its rules on `node`.
    pub fn install<'a>(&self, node: &'a LabNode) -> Result<Installed<'a>> {
        let Self {
            cluster,
            node_port,
            endpoint,
            masquerade,
        } = self;
        let table = format!("service-{node_port}");
        let mark = if *masquerade {
            "meta mark set meta mark or 0x4000"
        } else {
            ""
        };
        let rules: String = ["tcp", "udp"]
            .iter()
            .map(|protocol| {
                format!(
                    "    ip daddr {} {protocol} dport {} dnat to {endpoint}
    fib daddr type local {protocol} dport {node_port} {mark} dnat to {endpoint}\n",
                    cluster.ip(),
                    cluster.port(),
                )
            })
            .collect();
        node.nft(&format!(
            "table ip {table} {{
  chain arriving {{
    type nat hook prerouting priority dstnat;
{rules}  }}
  chain own {{
    type nat hook output priority -100;
{rules}  }}
  chain leaving {{
    type nat hook postrouting priority srcnat - 1;
    meta mark and 0x4000 == 0x4000 masquerade
  }}
}}
"
        ))
        .with_context(|| format!("the rules of {self:?}"))?;
        Ok(Installed { host: node, table })
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.host.nft(&format!("delete table ip {}", self.table)) {
            eprintln!("removing the rules of a Service: {error:#}");
        }
    }
}
