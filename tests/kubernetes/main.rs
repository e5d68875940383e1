//! A real Kubernetes cluster in simulated clouds. Each test's name is what it proves.

mod bare;

use ipip_tests::trash::empty_all_on_interrupt;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

type Test = fn() -> anyhow::Result<()>;

const TESTS: &[(&str, Test)] = &[
    (
        "with_iptables_a_bare_cluster_serves_each_cloud_alone_and_leaves_nothing_behind",
        bare::with_iptables,
    ),
    (
        "with_nftables_a_bare_cluster_serves_each_cloud_alone_and_leaves_nothing_behind",
        bare::with_nftables,
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A cluster is four machines' worth of work.
    arguments.test_threads = Some(1);
    if let Err(error) = empty_all_on_interrupt() {
        eprintln!("cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let trials = TESTS
        .iter()
        .map(|&(name, test)| {
            Trial::test(name, move || {
                test().map_err(|error| format!("{error:#}").into())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
