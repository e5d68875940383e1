//! A node as flannel configures it: kernel VXLAN, and the rules of flannel's manifest (`--ip-masq`).

use super::{
    kube_proxy::{CLUSTER_CIDR, restore},
    manual::bring_up,
};
use anyhow::{Context, Result};
use ipip_lab::Lab;
use ipip_testkit::shell;
use ipnetwork::Ipv4Network;

const DEVICE: &str = "flannel.1";

/// Connects node `own` to node `other`, whose pods have this MTU. The device does not learn; the entries of
/// the other node are static.
pub fn connect(lab: &Lab, own: usize, other: usize, mtu: u32) -> Result<()> {
    let mac = |node: usize| format!("02:00:00:00:01:{node:02x}");
    let topology = lab.topology();
    let (from, to) = (&topology.nodes[own], &topology.nodes[other]);
    let node = &lab.nodes()[own];
    let (range, underlay) = (to.pod_cidr, to.addresses[0]);
    node.ip(&format!(
        "link add {DEVICE} address {} mtu {mtu} type vxlan id 1 local {} dev eth0 \
         dstport 8472 nolearning",
        mac(own),
        from.addresses[0]
    ))?;
    bring_up(node, DEVICE, from.pod_cidr.network())?;
    let via = range.network();
    node.ip(&format!("route add {range} via {via} dev {DEVICE} onlink"))?;
    node.ip(&format!(
        "neigh add {via} lladdr {} dev {DEVICE} nud permanent",
        mac(other)
    ))?;
    shell::run(&format!(
        "bridge -n {} fdb append {} dev {DEVICE} dst {underlay} self permanent",
        node.name(),
        mac(other)
    ))?;
    restore(node, &rules(from.pod_cidr)).context("cannot load flannel's rules")
}

/// Packets between pods keep their source; packets that leave the cluster or come from outside are
/// masqueraded; packets from and to pods are forwarded.
fn rules(pod_cidr: Ipv4Network) -> String {
    let masquerade = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    format!(
        "*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING {masquerade} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masquerade} -j RETURN
-A FLANNEL-POSTRTG -s {pod_cidr} -d {CLUSTER_CIDR} {masquerade} -j RETURN
-A FLANNEL-POSTRTG -s {CLUSTER_CIDR} -d {pod_cidr} {masquerade} -j RETURN
-A FLANNEL-POSTRTG ! -s {CLUSTER_CIDR} -d {pod_cidr} {masquerade} -j RETURN
-A FLANNEL-POSTRTG -s {CLUSTER_CIDR} ! -d 224.0.0.0/4 {masquerade} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s {CLUSTER_CIDR} -d {CLUSTER_CIDR} {masquerade} -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s {CLUSTER_CIDR} {forward} -j ACCEPT
-A FLANNEL-FWD -d {CLUSTER_CIDR} {forward} -j ACCEPT
COMMIT
"
    )
}
