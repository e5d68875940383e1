//! Virtual machines with Debian 12 as users install it: systemd, AppArmor, Debian's kernels and containerd. Each
//! test's name is the sentence that it proves.

mod apparmor;
mod init;
mod nodes;
mod reset;

use anyhow::{Result, ensure};
use ipip_lab::virtual_machines::Site;
use ipip_testkit::harness::{Harness, Suite};
use std::process::ExitCode;

/// The suites: one for each kernel, and one whose control plane is on the machine. Without [`ALL`], only the first runs.
static SUITES: &[Suite<Nodes>] = &[
    Suite {
        name: "linux_6_1",
        start: || start("6.1"),
        tests: &[apparmor::TESTS, nodes::TESTS, reset::TESTS],
    },
    Suite {
        name: "linux_6_12",
        start: || start("6.12"),
        tests: &[apparmor::TESTS, nodes::TESTS, reset::TESTS],
    },
    Suite {
        name: "kubeadm_init",
        start: init::start,
        tests: &[init::TESTS],
    },
];

/// The variable with which every suite runs, if its value is `all`.
const ALL: &str = "IPIP_HOSTS";

/// The manifests for Debian's package containerd.
const DEBIAN: &str = "resources: [MANIFESTS/overlays/debian]\n";

/// Machines that are nodes of a cluster.
struct Nodes {
    site: Site,
    has_dns: bool,
    has_network: bool,
}

impl Nodes {
    /// Makes the machines nodes by `kubeadm`.
    fn made_by(kubeadm: fn(&Site) -> Result<()>, site: Site, has_dns: bool) -> Result<Self> {
        has_apparmor(&site)?;
        kubeadm(&site).map_err(|error| error.context(site.report()))?;
        Ok(Self {
            site,
            has_dns,
            has_network: false,
        })
    }

    /// The machines with this project, CoreDNS and a pod `on-NAME` on each. The first call installs them.
    fn with_network(&mut self) -> Result<&Site> {
        let site = &self.site;
        if !self.has_network {
            site.install(DEBIAN)?;
            if !self.has_dns {
                site.install_dns("m1")?;
            }
            for machine in &site.machines {
                let pod = format!("on-{}", machine.name());
                site.run_pod(&pod, machine.name(), nodes::POD)?;
            }
            for machine in &site.machines {
                site.pod_address(&format!("on-{}", machine.name()))?;
            }
            self.has_network = true;
        }
        Ok(site)
    }
}

fn main() -> ExitCode {
    let mut harness = Harness::new(|nodes: &Nodes| nodes.site.report());
    let all = std::env::var(ALL).is_ok_and(|value| value == "all");
    let suites = if all { SUITES } else { &SUITES[..1] };
    suites.iter().for_each(|suite| harness.suite(suite));
    harness.run()
}

/// Two machines that have joined a cluster.
fn start(kernel: &str) -> Result<Nodes> {
    let site = Site::start(kernel, &["m1", "m2"])?;
    Nodes::made_by(Site::join, site, false)
}

fn has_apparmor(site: &Site) -> Result<()> {
    for machine in &site.machines {
        let enabled = machine.shell("cat /sys/module/apparmor/parameters/enabled")?;
        ensure!(enabled.trim() == "Y", "{} has no AppArmor", machine.name());
    }
    Ok(())
}
