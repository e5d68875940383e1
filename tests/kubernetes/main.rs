//! A real Kubernetes cluster in simulated clouds. Each test's name is the
//! sentence that it proves.

mod bare;
mod command;
mod contested;
mod firewall;
mod nodes;
mod other_network;
mod paths;
mod pool;
mod probes;
mod public_address;
mod repair;
mod running_ping;
mod uninstall;

use anyhow::{Context, Result};
use ipip_lab::kubernetes::{
    Cluster, Machine, PodNetwork, ProxyMode, Settings,
    scenarios::{SCENARIOS, Workloads},
};
use ipip_testkit::{
    harness::{Harness, Suite, is_long},
    shell,
};
use serde_json::Value;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// The suites, one for each mode of kube-proxy. Each also runs all scenarios. In the second one the controllers
/// allocate no pod CIDRs, and the agents claim them from a pool; and nothing tells the nodes' realms.
static SUITES: &[Suite<Workloads>] = &[
    Suite {
        name: "iptables",
        start: || start(Settings::default()),
        tests: &[
            command::TESTS,
            firewall::TESTS,
            other_network::TESTS,
            contested::TESTS,
            probes::TESTS,
            paths::TESTS,
            paths::narrow::TESTS,
            paths::private_route::TESTS,
            public_address::TESTS,
            repair::TESTS,
            nodes::TESTS,
        ],
    },
    Suite {
        name: "nftables",
        start: || {
            start(Settings {
                proxy: ProxyMode::Nftables,
                own_pool: true,
                realms: false,
                ..Settings::default()
            })
        },
        tests: &[paths::without_realms::TESTS, firewall::TESTS, pool::TESTS],
    },
];

/// How long a scenario retries.
const MAX_WAIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut harness = Harness::new(|workloads: &Workloads| workloads.cluster.report());
    for suite in SUITES {
        for row in SCENARIOS {
            harness.test(suite, row.name, |workloads| {
                let seen = (row.attempt)(workloads)?;
                eprintln!("        {seen}");
                Ok(())
            });
        }
        harness.suite(suite);
    }
    harness.lone_tests("uninstall", uninstall::TESTS);
    if is_long() {
        harness.lone_tests("bare", bare::TESTS);
    }
    harness.run()
}

/// A cluster with our CNI, pods and Services.
fn start(settings: Settings) -> Result<Workloads> {
    let settings = Settings {
        network: PodNetwork::Ipip,
        ..settings
    };
    let cluster = Cluster::start(settings, &print_step)?;
    let began = Instant::now();
    let workloads = Workloads::start(cluster, MAX_WAIT).context("the pods do not start")?;
    print_step("pods and Services", began.elapsed());
    Ok(workloads)
}

/// Prints how long a step took.
fn print_step(what: &str, took: Duration) {
    eprintln!("{:6.1} s  {what}", took.as_secs_f64());
}

/// What `ipipctl` prints on a node as JSON, whatever its exit code.
fn ipipctl(node: &Machine, arguments: &[&str]) -> Result<Value> {
    let program = shell::own_program("ipipctl")?;
    let program = program.to_str().context("the path is not UTF-8")?;
    let script = "\"$@\" --output=json || true";
    let printed = node.run("sh", &[&["-c", script, "sh", program], arguments].concat())?;
    serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
}
