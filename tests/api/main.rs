//! The agent and its manifests against a real API server. Each test's name is what it proves.

mod agent;
mod kubeadm;
mod manifests;
mod rights;
mod schema;

use anyhow::Result;
use ipip_lab::api_server::ApiServer;
use ipip_testkit::trash::empty_all_on_interrupt;
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

/// A test and its name.
type Test = (&'static str, fn(&ApiServer) -> Result<()>);

/// Lists functions as tests.
macro_rules! tests {
    ($($test:ident),* $(,)?) => { &[$((stringify!($test), $test)),*] };
}
use tests;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one API server, and one of them stops it for a while.
    arguments.test_threads = Some(1);
    if let Err(error) = empty_all_on_interrupt() {
        eprintln!("cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let shared: Arc<Mutex<Option<ApiServer>>> = Arc::default();
    let tests = [schema::TESTS, manifests::TESTS, rights::TESTS, agent::TESTS].concat();
    let with_server = tests.into_iter().map(|(name, test)| {
        let shared = shared.clone();
        Trial::test(name, move || run(&shared, test))
    });
    let alone = kubeadm::TESTS
        .iter()
        .map(|&(name, test)| Trial::test(name, move || test().map_err(failed)));
    let conclusion = libtest_mimic::run(&arguments, alone.chain(with_server).collect());
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
    conclusion.exit_code()
}

fn run(
    shared: &Mutex<Option<ApiServer>>,
    test: fn(&ApiServer) -> Result<()>,
) -> Result<(), Failed> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let server = match &mut *shared {
        Some(server) => server,
        none => none.insert(start().map_err(failed)?),
    };
    let outcome = test(server).map_err(failed);
    if outcome.is_err() {
        // Whatever state it is in, the next test shall not see it.
        *shared = None;
    }
    outcome
}

/// A server that has our manifests.
fn start() -> Result<ApiServer> {
    let server = ApiServer::start(&format!("ipip-api-{}", std::process::id()))?;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    server.kubectl(&["apply", "--server-side", "-k", manifests])?;
    server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/ipipnodes.ipip.dev",
    ])?;
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

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
