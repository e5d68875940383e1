//! Agents set again what other programs changed on the host, and count it.

use anyhow::{Context, Result, ensure};
use ipip_datapath::{AttachMode, Programs};
use ipip_lab::{Lab, LabNode, LabPod, service::Service};
use ipip_netlink::sysctl;
use ipip_testkit::{
    echo::{EchoServer, tcp_exchange, udp_exchange},
    harness::Test,
    http::Response,
    links,
    ping::Ping,
    shell, tests,
    trash::Item,
    wait,
};
use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    process::Command,
    time::Duration,
};

/// The agent looks again at what the kernel announces to nobody every 30 s.
const RESYNC: Duration = Duration::from_secs(60);

pub const TESTS: &[Test<Lab>] = tests![
    route_neighbour_and_link_of_a_pod_come_back_whoever_removes_them,
    a_pod_that_is_added_or_deleted_needs_no_repair_and_leaves_no_route,
    the_tunnel_interface_and_the_agents_routes_come_back_whoever_removes_them,
    peers_are_followed_while_another_interface_has_the_name_of_the_tunnel,
    kernel_settings_come_back_whoever_changes_them,
    a_kernel_setting_that_cannot_be_set_is_reported_and_peers_are_followed,
    a_pod_forwards_even_if_new_interfaces_do_not_by_default,
    strict_reverse_path_filters_on_uplinks_and_pods_drop_nothing,
    a_pod_whose_interface_another_program_takes_is_reported_until_it_gives_it_back,
    links_that_another_program_detaches_are_attached_again_and_counted,
];

pub const CLSACT_TESTS: &[Test<Lab>] = tests![detached_programs_are_attached_again];

const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80);
const PORT: u16 = 8090;
const NODE_PORT: u16 = 30_090;

fn route_neighbour_and_link_of_a_pod_come_back_whoever_removes_them(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (address, veth) = (pod.address(), pod.veth()?);
    for (damage, repair) in [
        (format!("route delete {address}/32"), "PodRoute"),
        (format!("route replace {address}/32 dev eth0"), "PodRoute"),
        (format!("route flush dev {veth}"), "PodRoute"),
        (
            format!("neighbour delete {address} dev {veth}"),
            "PodNeighbour",
        ),
        ("neighbour flush nud all".into(), "PodNeighbour"),
        (
            format!(
                "neighbour replace {address} dev {veth} lladdr 02:00:00:00:00:99 nud permanent"
            ),
            "PodNeighbour",
        ),
        (format!("link set {veth} down"), "PodLink"),
        (
            format!("link set {veth} address 02:00:00:00:00:98"),
            "PodLink",
        ),
    ] {
        damaged(pod.node(), &damage, repair, || Ok(pod.check().is_ok()))?;
        works(lab, pod).with_context(|| damage.clone())?;
    }
    // Interface and routes go, and the interface alone comes back.
    pod.node().ip(&format!("link set {veth} down"))?;
    pod.node().ip(&format!("link set {veth} up"))?;
    wait::until("the pod is complete", || Ok(pod.check().is_ok()))?;
    works(lab, pod)
}

fn a_pod_that_is_added_or_deleted_needs_no_repair_and_leaves_no_route(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let before = node.repairs()?;
    for round in 0..8 {
        let pod = lab.start_pod("a1", &format!("brief{round}"))?;
        pod.check()?;
        let address = pod.address();
        pod.delete()?;
        let routes = node.ip(&format!("route show {address}"))?;
        ensure!(routes.is_empty(), "left: {routes}");
    }
    let after = node.repairs()?;
    ensure!(after == before, "repaired: {before}, then {after}");
    Ok(())
}

fn the_tunnel_interface_and_the_agents_routes_come_back_whoever_removes_them(
    lab: &Lab,
) -> Result<()> {
    let (node, pod) = (lab.node("a1")?, lab.pod("a1")?);
    let wanted = tunnel(node)?;
    for (damage, repair) in [
        (&["link set ipip0 down"][..], "TunnelLink"),
        (&["link set ipip0-far down"], "TunnelLink"),
        (&["link set ipip0 mtu 1300"], "TunnelLink"),
        (&["link set ipip0 arp on"], "TunnelLink"),
        (
            &["link set ipip0 down", "link set ipip0 name other0"],
            "TunnelLink",
        ),
        (
            &["link set ipip0-far down", "link set ipip0-far name other1"],
            "TunnelLink",
        ),
        (&["link delete ipip0"], "TunnelLink"),
        (&["address flush dev ipip0"], "TunnelAddress"),
        (&["address add 10.9.9.9/32 dev ipip0"], "TunnelAddress"),
        (&["route flush proto 105"], "Route"),
        (&["route delete 10.42.3.0/24"], "Route"),
        (&["route delete unreachable 10.42.1.0/24"], "Route"),
    ] {
        let (last, first) = damage.split_last().context("no damage")?;
        for command in first {
            node.ip(command)?;
        }
        damaged(node, last, repair, || Ok(tunnel(node)? == wanted))
            .with_context(|| tunnel(node).unwrap_or_default())?;
        works(lab, pod).with_context(|| (*last).to_string())?;
    }
    Ok(())
}

fn peers_are_followed_while_another_interface_has_the_name_of_the_tunnel(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    let wanted = tunnel(node)?;
    node.kill_agent()?;
    node.ip("link delete ipip0")?;
    node.ip("link add ipip0 type bridge")?;
    node.start_agent()?;
    let all = lab.topology().inventory();
    let without_c1: Vec<_> = all.iter().filter(|it| it.name != "c1").cloned().collect();
    lab.write_inventory(&without_c1)?;
    let followed = wait::until("a1 forgets c1, and names the interface", || {
        let names_it = |answer: Response| answer.body.contains("interface ipip0 is not ours");
        Ok(!node.peers()?.contains_key("c1") && node.ready().is_ok_and(names_it))
    });
    let pods = Ping::to(lab.pod("b1")?.address()).reply_ttl(lab.pod("a1")?);
    lab.write_inventory(&all)?;
    node.ip("link delete ipip0")?;
    node.wait_ready(Duration::from_secs(60))?;
    followed?;
    pods.context("the pods do not need the interface")?;
    wait::until("the tunnel is back", || Ok(tunnel(node)? == wanted))?;
    works(lab, lab.pod("a1")?)
}

fn kernel_settings_come_back_whoever_changes_them(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (node, veth) = (pod.node(), pod.veth()?);
    // The kernel announces a change of these.
    for (key, bad) in [
        ("net.ipv4.ip_forward".to_string(), "0"),
        ("net.ipv4.conf.ipip0.forwarding".into(), "0"),
        ("net.ipv4.conf.eth0.forwarding".into(), "0"),
        (format!("net.ipv4.conf.{veth}.forwarding"), "0"),
        ("net.ipv4.conf.ipip0.rp_filter".into(), "1"),
        ("net.ipv4.conf.ipip0.rp_filter".into(), "0"),
    ] {
        comes_back(node, &key, bad, Duration::from_secs(20))?;
        works(lab, pod).with_context(|| format!("{key}={bad}"))?;
    }
    // Only a resync finds these.
    let silent = [
        ("net.ipv4.conf.ipip0.send_redirects", "1"),
        ("net.ipv6.conf.ipip0.disable_ipv6", "0"),
        ("net.ipv6.conf.ipip0-far.disable_ipv6", "0"),
        (&format!("net.ipv6.conf.{veth}.disable_ipv6"), "0"),
    ];
    let before = node.repaired("Sysctl")?;
    let changed: Vec<_> = silent
        .iter()
        .map(|(key, bad)| Ok((*key, change(node, key, bad)?)))
        .collect::<Result<_>>()?;
    wait::within(RESYNC, "the settings are as before", || {
        for (key, right) in &changed {
            if node.enter(|| sysctl(key))?? != *right {
                return Ok(false);
            }
        }
        Ok(node.repaired("Sysctl")? >= before + silent.len() as u64)
    })
}

fn a_kernel_setting_that_cannot_be_set_is_reported_and_peers_are_followed(lab: &Lab) -> Result<()> {
    let (node, key) = (lab.node("a1")?, "net.ipv4.conf.ipip0.rp_filter");
    node.kill_agent()?;
    node.sysctl(key, "1")?;
    // As in a container without the host's /proc/sys/net.
    let agent = node.agent_command()?;
    let read_only =
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", read_only, "sh"])
        .arg(agent.get_program())
        .args(agent.get_args());
    let mut running = node.daemon(&mut command, &node.log_path(), lab.trash())?;
    let all = lab.topology().inventory();
    let without_c1: Vec<_> = all.iter().filter(|it| it.name != "c1").cloned().collect();
    lab.write_inventory(&without_c1)?;
    let followed = wait::until("the setting is reported, and c1 is forgotten", || {
        let names_it = |answer: Response| answer.body.contains(&format!("{key}=2: Read-only"));
        let problems = node.ipipctl_json(&["status"])?["agent"]["problems"].to_string();
        Ok(node.ready().is_ok_and(names_it)
            && problems.contains("KernelSetting")
            && !node.peers()?.contains_key("c1"))
    });
    lab.write_inventory(&all)?;
    running.kill()?;
    running.wait()?;
    lab.trash().forget(&Item::process(&running));
    node.restart_agent()?;
    followed?;
    ensure!(node.enter(|| sysctl(key))?? == "2", "not set");
    works(lab, lab.pod("a1")?)
}

fn a_pod_forwards_even_if_new_interfaces_do_not_by_default(lab: &Lab) -> Result<()> {
    let node = lab.node("a1")?;
    node.sysctl("net.ipv4.conf.default.forwarding", "0")?;
    let pod = lab.start_pod("a1", "closed");
    node.sysctl("net.ipv4.conf.default.forwarding", "1")?;
    let pod = pod?;
    works(lab, &pod)?;
    pod.delete()
}

fn strict_reverse_path_filters_on_uplinks_and_pods_drop_nothing(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (node, veth) = (pod.node(), pod.veth()?);
    let keys = [
        "net.ipv4.conf.all.rp_filter".to_string(),
        "net.ipv4.conf.eth0.rp_filter".into(),
        format!("net.ipv4.conf.{veth}.rp_filter"),
    ];
    let before: Vec<String> =
        node.enter(|| keys.iter().map(|key| sysctl(key)).collect::<Result<_, _>>())??;
    for key in &keys {
        node.sysctl(key, "1")?;
    }
    let worked = works(lab, pod);
    for (key, value) in keys.iter().zip(&before) {
        node.sysctl(key, value)?;
    }
    worked
}

fn a_pod_whose_interface_another_program_takes_is_reported_until_it_gives_it_back(
    lab: &Lab,
) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (node, veth) = (pod.node(), pod.veth()?);
    let remedy = format!("`ip link set {veth} nomaster`");
    let is_reported = || {
        let problems = node.ipipctl_json(&["status"])?["agent"]["problems"].to_string();
        Ok::<_, anyhow::Error>(problems.contains("PodInterfaceTaken") && problems.contains(&remedy))
    };
    ensure!(!is_reported()?, "reported before");
    node.ip("link add taker type bridge")?;
    node.ip(&format!("link set {veth} master taker"))?;
    let reported = wait::until("it is reported", is_reported);
    // What the remedy says.
    node.ip(&format!("link set {veth} nomaster"))?;
    let solved = wait::until("it is solved", || Ok(!is_reported()?));
    node.ip("link delete taker")?;
    reported?;
    solved?;
    works(lab, pod)
}

/// The kernel announces this to nobody, so the agent sees it at its next resync.
fn links_that_another_program_detaches_are_attached_again_and_counted(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (node, veth) = (pod.node(), pod.veth()?);
    node.wait_promoted()?;
    let attached = || -> Result<BTreeSet<(String, String)>> {
        let attached =
            node.enter(|| Programs::open(node.pins(), AttachMode::Auto)?.attached())??;
        let alive = attached.into_iter().filter(|it| !it.defunct);
        Ok(alive
            .map(|it| (it.ifname, it.program.to_string()))
            .collect())
    };
    let (before, count) = (attached()?, node.repaired("Program")?);
    let interfaces = [("eth0", 1), ("ipip0", 1), (veth, 2)];
    let mut programs = 0;
    for (interface, expected) in interfaces {
        let detached = detach_links(node, interface)?;
        ensure!(detached == expected, "{interface}: {detached} links");
        programs += detached;
    }
    ensure!(attached()?.len() + programs == before.len(), "not detached");
    wait::within(
        RESYNC,
        "each program is attached, and the repairs are counted",
        || Ok(attached()? == before && node.repaired("Program")? >= count + programs as u64),
    )
    .with_context(|| format!("{before:?}, now {:?}", attached()))?;
    let log = node.log_tail(40);
    for (interface, _) in interfaces {
        ensure!(
            log.contains(&format!("on {interface}")),
            "{interface}: not logged"
        );
    }
    works(lab, pod)
}

/// Detaches every link of an interface, as `bpftool link detach` does, and returns their number.
fn detach_links(node: &LabNode, interface: &str) -> Result<usize> {
    let (mut detached, start) = (0, format!("{interface}@"));
    for entry in fs::read_dir(node.pins().links())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            links::detach(&entry.path())?;
            detached += 1;
        }
    }
    Ok(detached)
}

fn detached_programs_are_attached_again(lab: &Lab) -> Result<()> {
    let pod = lab.pod("a1")?;
    let (node, veth) = (pod.node(), pod.veth()?);
    for interface in ["eth0", "ipip0", veth] {
        for direction in ["ingress", "egress", ""] {
            let filters = || -> Result<String> {
                let mut all = String::new();
                for direction in ["ingress", "egress"] {
                    for line in tc(node, &["filter", "show", "dev", interface, direction])?.lines()
                    {
                        all += &format!("{direction} {line}\n");
                    }
                }
                // Without what the kernel counts and names anew.
                let lines = all.lines().filter(|line| line.contains("handle"));
                Ok(lines
                    .map(|line| line.split(" id ").next().unwrap_or_default())
                    .collect())
            };
            let before = filters()?;
            if !direction.is_empty() && !before.contains(direction) {
                continue;
            }
            let count = node.repaired("Program")?;
            match direction {
                "" => tc(node, &["qdisc", "delete", "dev", interface, "clsact"])?,
                _ => tc(node, &["filter", "delete", "dev", interface, direction])?,
            };
            wait::until("the filters are back", || Ok(filters()? == before)).with_context(
                || format!("{interface} {direction}: {before:?}, now {:?}", filters()),
            )?;
            if !before.is_empty() && direction.is_empty() {
                ensure!(
                    node.repaired("Program")? > count,
                    "{interface}: not counted"
                );
            }
            works(lab, pod).with_context(|| format!("{interface} {direction}"))?;
        }
    }
    Ok(())
}

/// Runs `ip` with the arguments `damage` on a node, and waits until the state is right again and the repair is counted.
fn damaged(
    node: &LabNode,
    damage: &str,
    repair: &str,
    mut is_right: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let before = node.repaired(repair)?;
    node.ip(damage)?;
    wait::until(&format!("`ip {damage}` is repaired"), || {
        Ok(is_right()? && node.repaired(repair)? > before)
    })
}

fn comes_back(node: &LabNode, key: &str, bad: &str, max_wait: Duration) -> Result<()> {
    let before = node.repaired("Sysctl")?;
    let right = change(node, key, bad)?;
    wait::within(max_wait, &format!("{key} is {right} again"), || {
        Ok(node.enter(|| sysctl(key))?? == right && node.repaired("Sysctl")? > before)
    })
}

/// Changes a kernel setting and returns its value of before.
fn change(node: &LabNode, key: &str, bad: &str) -> Result<String> {
    let right = node.enter(|| sysctl(key))??;
    ensure!(right != bad, "{key} is {bad} already");
    node.sysctl(key, bad)?;
    Ok(right)
}

/// Expects that the pod reaches other clouds, a Service and the Internet, and that its node reaches it.
fn works(lab: &Lab, pod: &LabPod) -> Result<()> {
    let (node, endpoint) = (pod.node(), lab.pod("b1")?);
    Ping::to(pod.address())
        .reply_ttl(node)
        .context("from its node")?;
    Ping::to(endpoint.address())
        .reply_ttl(pod)
        .context("to another cloud")?;
    Ping::to(ipip_lab::topology::WEB)
        .reply_ttl(pod)
        .context("to the Internet")?;
    let _server = EchoServer::start(endpoint, PORT)?;
    let service = Service {
        cluster: CLUSTER,
        node_port: NODE_PORT,
        endpoint: endpoint.at(PORT),
        masquerade: true,
    };
    let _service = service.install(node)?;
    tcp_exchange(pod, 0, CLUSTER, 100_000).context("by a Service")?;
    udp_exchange(pod, 0, CLUSTER, 100).context("by a Service")?;
    let outside = SocketAddrV4::new(node.public()?, NODE_PORT);
    tcp_exchange(&lab.fabric().web, 0, outside, 100_000).context("by a NodePort")?;
    Ok(())
}

/// The tunnel interface and the agent's routes, without indexes and MACs.
fn tunnel(node: &LabNode) -> Result<String> {
    let links = node.ip("-o link show type veth")?;
    let mut links: Vec<String> = links
        .lines()
        .filter(|line| line.contains(" ipip0"))
        .map(|line| {
            let words = line.split_whitespace().skip(1);
            let words: Vec<&str> = words
                .take_while(|word| !word.starts_with("link/"))
                .collect();
            words.join(" ") + "\n"
        })
        .collect();
    links.sort();
    let addresses = match node.ip("-4 -o address show dev ipip0") {
        Ok(addresses) => {
            let words: Vec<&str> = addresses.split_whitespace().skip(1).collect();
            words.join(" ")
        }
        // The interface is gone for a moment.
        Err(_) => String::new(),
    };
    Ok(format!(
        "{}{addresses}\n{}",
        links.concat(),
        node.ip("route show proto 105")?
    ))
}

fn tc(node: &LabNode, arguments: &[&str]) -> Result<String> {
    shell::printed("tc", Ok(node.output(Command::new("tc").args(arguments))?))
}
