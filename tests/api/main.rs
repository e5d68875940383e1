//! The agent and its manifests against a real API server. Each test's name is the
//! sentence that it proves.

mod agent;
mod blocks;
mod claims;
mod evil;
mod guards;
mod kubeadm;
mod manifests;
mod rights;
mod schema;
mod seniority;

use anyhow::Result;
use ipip_lab::api_server::ApiServer;
use ipip_testkit::harness::{Harness, Suite};
use std::process::ExitCode;

static SUITE: Suite<ApiServer> = Suite {
    name: "api_server",
    start,
    tests: &[
        schema::TESTS,
        rights::TESTS,
        agent::TESTS,
        seniority::TESTS,
        guards::TESTS,
        blocks::TESTS,
        claims::TESTS,
    ],
};

fn main() -> ExitCode {
    let mut harness = Harness::new(ApiServer::report);
    harness.lone_tests("kubeadm", kubeadm::TESTS);
    harness.lone_tests("manifests", manifests::TESTS);
    harness.suite(&SUITE);
    harness.run()
}

/// Starts a server and applies the project's manifests.
fn start() -> Result<ApiServer> {
    let server = ApiServer::start(&format!("ipip-api-{}", std::process::id()))?;
    server.apply_manifests()?;
    // kubectl reads what it patches; agents do not.
    server.kubectl(&[
        "create",
        "clusterrole",
        "read-status",
        "--verb=get",
        "--resource=nodes/status,ipipnodes/status",
    ])?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "read-status",
        "--clusterrole=read-status",
        "--serviceaccount=kube-system:ipip-agent",
    ])?;
    Ok(server)
}
