//! A router between the clouds of a real cluster with a smaller MTU than the nodes. That the larger one is used again later is
//! tested in simulated clouds, because it takes a minute.

use super::{ENDS, both_use, row};
use anyhow::{Context, Result};
use ipip_lab::{
    kubernetes::{PodHost, scenarios::Workloads},
    narrow::Narrow,
};
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    tests, wait,
};
use serde_json::Value;
use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

pub const TESTS: &[Test<Workloads>] =
    tests![bulk_data_of_pods_and_kubectl_passes_a_router_of_1400_bytes_and_a_silent_one_of_1280];

/// The MTU is found within this time.
const FOUND: Duration = Duration::from_secs(20);
const PORT: u16 = 8081;
const BULK: usize = 16 << 20;
/// Bytes that IP-in-IP adds.
const OVERHEAD: u32 = 20;
/// Sends lines to a pod of b1, and reads them back. The kubelet is at an InternalIP of another cloud. Argument: their number.
const BY_KUBECTL: &str = "
expected=$(seq 1 $1 | md5sum)
copy='cat > /tmp/lines && cat /tmp/lines && rm /tmp/lines'
found=$(seq 1 $1 | kubectl exec --stdin on-b1 -- sh -c \"$copy\" | md5sum)
echo \"$found, and not $expected\"
[ \"$found\" = \"$expected\" ]
";
/// These are 6.9 MB.
const LINES: &str = "1000000";

fn bulk_data_of_pods_and_kubectl_passes_a_router_of_1400_bytes_and_a_silent_one_of_1280(
    workloads: &mut Workloads,
) -> Result<()> {
    both_use(workloads, ENDS, "public-ipip", FOUND)?;
    let usual = workloads.cluster.settings().topology.uplink_mtu;
    let pods = Pods::start(workloads)?;
    let seconds = pods.tcp()?;
    both_have(workloads, usual)?;
    eprintln!("        {BULK} bytes there and back usually take {seconds:.2} s");
    passes(workloads, &pods, 1400, false)?;
    passes(workloads, &pods, 1280, true)
}

/// Expects that bulk data and large datagrams pass while the link of cloud-b to the Internet has this MTU.
fn passes(workloads: &Workloads, pods: &Pods, mtu: u32, drops_icmp: bool) -> Result<()> {
    let cluster = &workloads.cluster;
    let topology = &cluster.settings().topology;
    let narrow = Narrow::start(cluster.fabric(), topology, "cloud-b", mtu, drops_icmp)?;
    let first = pods.tcp().with_context(|| format!("MTU {mtu}"))?;
    both_have(workloads, mtu)?;
    let second = pods.tcp().with_context(|| format!("MTU {mtu}"))?;
    pods.udp()?;
    let began = Instant::now();
    let machine = cluster.control_plane();
    machine.run("sh", &["-ec", BY_KUBECTL, "sh", LINES])?;
    let kubectl = began.elapsed().as_secs_f64();
    eprintln!(
        "        MTU {mtu}: {first:.2} s while it was found, then {second:.2} s; kubectl exec {kubectl:.2} s"
    );
    narrow.end()
}

/// Pods of both ends, with echo servers in their networks.
struct Pods {
    hosts: [PodHost; 2],
    addresses: [SocketAddrV4; 2],
    _servers: [EchoServer; 2],
}

impl Pods {
    fn start(workloads: &Workloads) -> Result<Self> {
        let hosts = [workloads.pod_host(ENDS[0])?, workloads.pod_host(ENDS[1])?];
        let pods = [workloads.pod(ENDS[0])?, workloads.pod(ENDS[1])?];
        Ok(Self {
            _servers: [
                EchoServer::start(&hosts[0], PORT)?,
                EchoServer::start(&hosts[1], PORT)?,
            ],
            hosts,
            addresses: pods.map(|pod| SocketAddrV4::new(pod, PORT)),
        })
    }

    /// Sends bulk data there and back, and returns how many seconds it took.
    fn tcp(&self) -> Result<f64> {
        let began = Instant::now();
        tcp_exchange(&self.hosts[0], 0, self.addresses[1], BULK)?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// Sends large datagrams there and back, from both ends.
    fn udp(&self) -> Result<()> {
        udp_exchange(&self.hosts[0], 0, self.addresses[1], 8192)?;
        udp_exchange(&self.hosts[1], 0, self.addresses[0], 8192).map(drop)
    }
}

/// Waits until both nodes use a path by IP-in-IP with this MTU of its network.
fn both_have(workloads: &Workloads, mtu: u32) -> Result<()> {
    for [node, peer] in [ENDS, [ENDS[1], ENDS[0]]] {
        let mut shown = Value::Null;
        let what = format!("{node} knows {mtu} bytes to {peer}");
        wait::within(FOUND, &what, || {
            shown = row(workloads, node, peer)?;
            Ok(shown["path"] == "public-ipip" && shown["mtu"] == mtu - OVERHEAD)
        })
        .with_context(|| format!("{shown:#}"))?;
    }
    Ok(())
}
