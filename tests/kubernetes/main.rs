//! A real Kubernetes cluster in simulated clouds. Each test's name is what it proves.

mod bare;
mod command;
mod harness;
mod neighbours;
mod nodes;
mod uninstall;

use harness::{Current, StageTest};
use ipip_lab::kubernetes::ProxyMode;
use ipip_testkit::trash::empty_all_on_interrupt;
use libtest_mimic::Arguments;
use std::process::ExitCode;

/// Tests with a cluster of our own, beside the table.
const STAGE_TESTS: &[(&str, StageTest)] = &[
    (
        "kubectl_of_the_command_cluster_reads_files_relative_to_the_users_directory",
        command::kubectl_reads_relative_paths,
    ),
    (
        "another_network_on_a_node_is_told_of_and_let_alone",
        neighbours::another_network,
    ),
    (
        "nodes_leave_join_without_a_pod_cidr_and_change_their_address_without_loss_for_others",
        nodes::come_go_and_move,
    ),
    (
        "a_node_deleted_while_an_agent_is_cut_off_goes_when_it_hears_again_and_nothing_is_lost",
        nodes::deleted_while_cut_off,
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
    let current = Current::default();
    let mut trials = Vec::new();
    trials.extend(current.rows(ProxyMode::Iptables));
    for (name, test) in STAGE_TESTS {
        trials.push(current.trial(ProxyMode::Iptables, name, test));
    }
    trials.extend(current.rows(ProxyMode::Nftables));
    trials.push(uninstall::trial());
    trials.extend(bare::trials());
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    current.end();
    code
}
