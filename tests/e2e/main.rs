//! Real agents and the real CNI plugin in simulated clouds. Each test's name is what it proves.

mod direct;
mod encapsulation;
mod harness;
mod inventory;
mod leftovers;
mod limited;
mod mtu;
mod neighbours;
mod operator;
mod promotion;
mod reach;
mod restart;
mod service;
mod threats;
mod uplinks;

use harness::{Current, Suite};
use ipip_lab::Topology;
use ipip_testkit::trash::empty_all_on_interrupt;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

static SUITES: &[Suite] = &[
    Suite {
        name: "three_clouds",
        topology: Topology::three_clouds,
        tests: &[
            reach::TESTS,
            threats::TESTS,
            service::TESTS,
            mtu::TESTS,
            neighbours::TESTS,
            inventory::TESTS,
            promotion::TESTS,
            limited::TESTS,
            restart::TESTS,
            operator::TESTS,
        ],
    },
    Suite {
        name: "udp",
        topology: encapsulation::udp,
        tests: &[encapsulation::UDP_TESTS, reach::EVERYWHERE],
    },
    Suite {
        name: "clsact",
        topology: encapsulation::clsact,
        tests: &[
            encapsulation::CLSACT_TESTS,
            reach::EVERYWHERE,
            limited::CLSACT_TESTS,
            restart::TESTS,
        ],
    },
    Suite {
        name: "direct",
        topology: direct::topology,
        tests: &[direct::TESTS],
    },
    Suite {
        name: "two_uplinks",
        topology: Topology::two_uplinks,
        tests: &[uplinks::TESTS],
    },
    Suite {
        name: "uninstall",
        topology: Topology::one_realm,
        tests: &[operator::UNINSTALL_TESTS],
    },
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Tests of a suite share a lab, and some of them stop its agents for a while.
    arguments.test_threads = Some(1);
    if let Err(error) = empty_all_on_interrupt() {
        eprintln!("cannot wait for signals: {error}");
        return ExitCode::FAILURE;
    }
    let current = Current::default();
    let mut trials: Vec<Trial> = SUITES
        .iter()
        .flat_map(|suite| current.trials(suite))
        .collect();
    trials.push(Trial::test("a_dropped_lab_leaves_nothing_behind", || {
        leftovers::a_dropped_lab_leaves_nothing_behind()
            .map_err(|error| format!("{error:?}").into())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    current.end();
    conclusion.exit_code()
}
