//! The cluster in its normal state.

use crate::{Nodes, apparmor::PROFILE};
use anyhow::{Context, Result, ensure};
use ipip_lab::virtual_machines::Site;
use ipip_testkit::{harness::Test, tests};

/// What the pod of each machine runs. Its first line is the AppArmor profile that confines it.
pub const POD: &str =
    "cat /proc/self/attr/current; hostname > /tmp/index.html; exec httpd -f -p 80 -h /tmp";

pub const TESTS: &[Test<Nodes>] = tests![
    kubectl_logs_shows_what_a_pod_prints,
    pods_reach_each_other_across_machines,
    pods_resolve_names_through_the_service_of_coredns,
    a_restart_of_networkd_changes_no_link_and_no_route,
];

pub fn kubectl_logs_shows_what_a_pod_prints(nodes: &mut Nodes) -> Result<()> {
    let site = nodes.with_network()?;
    for machine in &site.machines {
        let logs = site.kubectl(&["logs", &format!("on-{}", machine.name())])?;
        ensure!(logs.contains(PROFILE), "{logs}");
    }
    Ok(())
}

fn pods_reach_each_other_across_machines(nodes: &mut Nodes) -> Result<()> {
    reach_each_other(nodes.with_network()?)
}

/// Fails if a pod does not reach the pod of another machine.
pub fn reach_each_other(site: &Site) -> Result<()> {
    for (from, to) in [("on-m1", "on-m2"), ("on-m2", "on-m1")] {
        let address = site.pod_address(to)?;
        // A static busybox has no working wget.
        let page = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {address} 80");
        site.wait(&format!("{from} reaches {to} at {address}"), || {
            Ok(site.in_pod(from, &page).is_ok_and(|it| it.contains(to)))
        })?;
        let ping = format!("ping -c 3 -W 10 {address}");
        site.in_pod(from, &ping)
            .with_context(|| format!("{from} pings {to}"))?;
    }
    Ok(())
}

pub fn pods_resolve_names_through_the_service_of_coredns(nodes: &mut Nodes) -> Result<()> {
    resolve(nodes.with_network()?)
}

/// Fails if a pod cannot resolve a name. CoreDNS runs on m1, so that a pod on m2 asks across machines.
pub fn resolve(site: &Site) -> Result<()> {
    let lookup = "timeout 20 nslookup kubernetes.default.svc.cluster.local";
    for machine in &site.machines {
        let pod = format!("on-{}", machine.name());
        site.wait(&format!("{pod} resolves a name"), || {
            Ok(site
                .in_pod(&pod, lookup)
                .is_ok_and(|it| it.contains("10.96.0.1")))
        })?;
    }
    Ok(())
}

fn a_restart_of_networkd_changes_no_link_and_no_route(nodes: &mut Nodes) -> Result<()> {
    let site = nodes.with_network()?;
    let state = "ip -brief link | sed 's/ *$//' | sort; ip route show table all | sort; \
                 ip neighbour show nud permanent | sort; ip -brief address | sort";
    for machine in &site.machines {
        let before = machine.shell(state)?;
        ensure!(before.contains("ipip0"), "{before}");
        machine.shell("systemctl restart systemd-networkd && networkctl reload && sleep 5")?;
        let after = machine.shell(state)?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    }
    reach_each_other(site)
}
