//! The network between the nodes: the Internet, the clouds' gateways, and the links between them.

use crate::topology::{Cloud, NodeSpec, STRANGER, Topology, WEB, gateway_of};
use anyhow::{Context, Result};
use ipip_testkit::{
    host::Host,
    offloads::{merge_on_arrival, segment_in_software},
    shell,
    trash::Trash,
};
use ipnetwork::Ipv4Network;
use std::{collections::BTreeMap, net::Ipv4Addr, process::Command};

/// The network between the nodes.
#[derive(Debug)]
pub struct Fabric {
    /// The router that stands for the Internet. Its interfaces are `to-NAME`.
    pub internet: Host,
    /// The gateways, by the names of their clouds. Their interfaces are `wan`, and `lan0`, `lan1`, ... for the
    /// cloud's networks. A network with several uplinks is a bridge, with a port `NODE-N` for a node's Nth uplink.
    pub gateways: BTreeMap<String, Host>,
    /// A host on the Internet that is not a node.
    pub stranger: Host,
    /// A host on the Internet that runs a public server.
    pub web: Host,
}

impl Fabric {
    /// Builds the network, without nodes.
    pub fn build(prefix: &str, topology: &Topology, trash: &Trash) -> Result<Self> {
        let internet = router(format!("{prefix}-internet"), trash)?;
        let stranger = on_the_internet(&internet, prefix, "stranger", STRANGER, trash)?;
        let web = on_the_internet(&internet, prefix, "web", WEB, trash)?;
        let mut gateways = BTreeMap::new();
        for (number, cloud) in topology.clouds.iter().enumerate() {
            let gateway = router(format!("{prefix}-{}", cloud.name), trash)?;
            connect_cloud(&internet, &gateway, number, cloud, topology)
                .with_context(|| format!("cannot connect {}", cloud.name))?;
            gateways.insert(cloud.name.clone(), gateway);
        }
        Ok(Self {
            internet,
            gateways,
            stranger,
            web,
        })
    }

    /// The gateway of a cloud.
    pub fn gateway(&self, cloud: &str) -> Result<&Host> {
        self.gateways
            .get(cloud)
            .with_context(|| format!("no cloud is called {cloud}"))
    }

    /// Replaces the gateways' NAT rules with those of `topology`, also for known connections.
    pub fn translate(&self, topology: &Topology) -> Result<()> {
        for cloud in &topology.clouds {
            let gateway = self.gateway(&cloud.name)?;
            let rules = nat_rules(cloud, topology);
            gateway.nft(&format!("delete table ip one-to-one\n{rules}"))?;
            shell::printed(
                "conntrack -F",
                Ok(gateway.output(Command::new("conntrack").arg("-F"))?),
            )?;
        }
        Ok(())
    }

    /// Closes the clouds to the Internet, except for replies and for packets that the nftables rules `open` accept.
    pub fn close(&self, open: &str) -> Result<()> {
        let rules = format!(
            "table ip firewall {{
  chain forward {{
    type filter hook forward priority filter;
    iifname != \"wan\" accept
    ct state established,related accept
    {open}
    drop
  }}
}}
"
        );
        self.gateways.values().try_for_each(|it| it.nft(&rules))
    }

    /// Makes the machine of a node, and connects its uplinks to its cloud.
    pub fn add_node(
        &self,
        prefix: &str,
        topology: &Topology,
        spec: &NodeSpec,
        trash: &Trash,
    ) -> Result<Host> {
        let cloud = topology
            .clouds
            .iter()
            .find(|cloud| cloud.name == spec.cloud)
            .with_context(|| format!("{}: no cloud is called {}", spec.name, spec.cloud))?;
        let gateway = self.gateway(&cloud.name)?;
        let node = Host::create(format!("{prefix}-{}", spec.name), trash)?;
        // Strict, the default of some distributions: the agent must work with it.
        for key in ["all", "default"] {
            node.sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), "1")?;
        }
        for (uplink, address) in spec.addresses.iter().enumerate() {
            let lan = cloud
                .network_of(*address)
                .with_context(|| format!("{address} is in no network of {}", cloud.name))?;
            let network = cloud.networks[lan];
            let shared = topology.uplinks_in(&cloud.name, network) > 1;
            let port = if shared {
                format!("{}-{uplink}", spec.name)
            } else {
                format!("lan{lan}")
            };
            wire(
                (&node, &format!("eth{uplink}")),
                (gateway, &port),
                topology.uplink_mtu,
            )?;
            if let Some(size) = topology.uplink_gso_max {
                node.set_gso_max(&format!("eth{uplink}"), size)?;
                gateway.set_gso_max(&port, size)?;
            }
            if topology.segmenting_uplinks {
                let eth = format!("eth{uplink}");
                node.enter(|| {
                    segment_in_software(&eth)?;
                    merge_on_arrival(&eth)
                })??;
                gateway.enter(|| segment_in_software(&port))??;
            }
            if shared {
                gateway.ip(&format!("link set {port} master lan{lan}"))?;
            } else {
                serve_network(gateway, lan, network)?;
            }
            node.ip(&format!(
                "addr add {address}/{} dev eth{uplink}",
                network.prefix()
            ))?;
            if uplink == 0 {
                node.ip(&format!("route add default via {}", gateway_of(network)))?;
            }
        }
        Ok(node)
    }
}

/// Connects two hosts by a veth pair, and brings both ends up.
fn wire(one: (&Host, &str), other: (&Host, &str), mtu: u32) -> Result<()> {
    shell::run(&format!(
        "ip link add {} mtu {mtu} netns {} type veth peer name {} mtu {mtu} netns {}",
        one.1,
        one.0.name(),
        other.1,
        other.0.name()
    ))?;
    for (host, ifname) in [one, other] {
        host.ip(&format!("link set {ifname} up"))?;
    }
    Ok(())
}

fn router(name: String, trash: &Trash) -> Result<Host> {
    let host = Host::create(name, trash)?;
    host.sysctl("net.ipv4.ip_forward", "1")?;
    for key in ["all", "default"] {
        host.sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), "0")?;
        // Gateways of clouds send no redirects. Redirects would use up the rate limit of other ICMP errors.
        host.sysctl(&format!("net.ipv4.conf.{key}.send_redirects"), "0")?;
    }
    Ok(host)
}

fn on_the_internet(
    internet: &Host,
    prefix: &str,
    name: &str,
    address: Ipv4Addr,
    trash: &Trash,
) -> Result<Host> {
    let host = Host::create(format!("{prefix}-{name}"), trash)?;
    let port = format!("to-{name}");
    wire((&host, "eth0"), (internet, &port), 1500)?;
    let [a, b, c, _] = address.octets();
    internet.ip(&format!("addr add {a}.{b}.{c}.1/24 dev {port}"))?;
    host.ip(&format!("addr add {address}/24 dev eth0"))?;
    host.ip(&format!("route add default via {a}.{b}.{c}.1"))?;
    Ok(host)
}

fn connect_cloud(
    internet: &Host,
    gateway: &Host,
    number: usize,
    cloud: &Cloud,
    topology: &Topology,
) -> Result<()> {
    let port = format!("to-{}", cloud.name);
    wire((gateway, "wan"), (internet, &port), topology.uplink_mtu)?;
    internet.ip(&format!("addr add 100.64.{number}.1/30 dev {port}"))?;
    internet.ip(&format!("route add {} via 100.64.{number}.2", cloud.public))?;
    gateway.ip(&format!("addr add 100.64.{number}.2/30 dev wan"))?;
    // For nodes that have no public address of their own.
    gateway.ip(&format!("addr add {}/32 dev wan", gateway_of(cloud.public)))?;
    gateway.ip(&format!("route add default via 100.64.{number}.1"))?;
    // Without this route, packets to an unused public address would go back to the Internet in a loop.
    gateway.ip(&format!("route add unreachable {}", cloud.public))?;
    for (lan, network) in cloud.networks.iter().enumerate() {
        if topology.uplinks_in(&cloud.name, *network) > 1 {
            gateway.ip(&format!("link add lan{lan} type bridge"))?;
            gateway.ip(&format!("link set lan{lan} up"))?;
            serve_network(gateway, lan, *network)?;
        }
    }
    if !topology.nat {
        return Ok(());
    }
    // Bridge netfilter would translate a node's packet to its own public address too early. The sysctl does not
    // exist if the module br_netfilter is not loaded.
    if let Err(error) = gateway.sysctl("net.bridge.bridge-nf-call-iptables", "0") {
        let netlink = error.downcast_ref::<ipip_netlink::Error>();
        if !netlink.is_some_and(ipip_netlink::Error::is_not_found) {
            return Err(error);
        }
    }
    gateway.nft(&nat_rules(cloud, topology))
}

/// Sets the gateway's address in a network.
fn serve_network(gateway: &Host, lan: usize, network: Ipv4Network) -> Result<()> {
    gateway.ip(&format!(
        "addr add {}/{} dev lan{lan}",
        gateway_of(network),
        network.prefix()
    ))?;
    // The gateway sends a gratuitous ARP when its MAC changes, as in a failover.
    gateway.sysctl(&format!("net.ipv4.conf.lan{lan}.arp_notify"), "1")
}

/// Rules for 1:1 NAT of every protocol, also for packets from inside to a public address of the same cloud
/// (hairpin).
fn nat_rules(cloud: &Cloud, topology: &Topology) -> String {
    let mut arriving = String::new();
    let mut leaving = String::new();
    for node in topology.nodes.iter().filter(|n| n.cloud == cloud.name) {
        let Some(public) = node.public else { continue };
        let private = node.addresses[0];
        arriving += &format!("    ip daddr {public} dnat to {private}\n");
        leaving += &format!("    ip saddr {private} oifname \"wan\" snat to {public}\n");
        leaving += &format!("    ip saddr {private} ct status dnat snat to {public}\n");
    }
    format!(
        "table ip one-to-one {{
  chain arriving {{
    type nat hook prerouting priority dstnat;
{arriving}  }}
  chain leaving {{
    type nat hook postrouting priority srcnat;
{leaving}    oifname \"wan\" masquerade
  }}
}}
"
    )
}
