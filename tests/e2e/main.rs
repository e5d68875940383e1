//! Real agents and the real CNI plugin in simulated clouds. Each test's name is the
//! sentence that it proves.

mod arp;
mod bandwidth;
mod checksum;
mod demo;
mod direct;
mod encapsulation;
mod firewall;
mod gso;
mod inventory;
mod leftovers;
mod local_addresses;
mod migration;
mod mtu;
mod neighbours;
mod operator;
mod other_networks;
mod outside;
mod paths;
mod probes;
mod promotion;
mod public_address;
mod reach;
mod repair;
mod restart;
mod service;
mod threats;
mod upgrade;
mod uplinks;

use ipip_lab::{Lab, Topology};
use ipip_testkit::harness::{Harness, Suite, is_long};
use std::{env, process::ExitCode};

static SUITES: &[Suite<Lab>] = &[
    Suite {
        name: "three_clouds",
        start: || Lab::start(Topology::three_clouds()),
        tests: &[
            reach::EVERYWHERE,
            reach::TESTS,
            threats::TESTS,
            arp::TESTS,
            service::TESTS,
            mtu::TESTS,
            neighbours::TESTS,
            inventory::TESTS,
            firewall::TESTS,
            promotion::TESTS,
            bandwidth::TESTS,
            restart::TESTS,
            operator::TESTS,
            probes::TESTS,
            public_address::TESTS,
            other_networks::TESTS,
        ],
    },
    Suite {
        name: "repair",
        start: || Lab::start(Topology::three_clouds()),
        tests: &[repair::TESTS],
    },
    Suite {
        name: "udp",
        start: || Lab::start(encapsulation::udp()),
        tests: &[encapsulation::UDP_TESTS, reach::EVERYWHERE],
    },
    Suite {
        name: "clsact",
        start: || Lab::start(encapsulation::clsact()),
        tests: &[
            encapsulation::CLSACT_TESTS,
            reach::EVERYWHERE,
            bandwidth::CLSACT_TESTS,
            repair::CLSACT_TESTS,
            restart::TESTS,
        ],
    },
    Suite {
        name: "direct",
        start: || Lab::start(direct::topology()),
        tests: &[direct::TESTS],
    },
    Suite {
        name: "gso",
        start: || Lab::start(gso::segmenting()),
        tests: &[gso::TESTS, checksum::TESTS],
    },
    Suite {
        name: "gso_whole",
        start: || Lab::start(gso::whole()),
        tests: &[gso::TESTS, checksum::TESTS],
    },
    Suite {
        name: "two_uplinks",
        start: || Lab::start(Topology::two_uplinks()),
        tests: &[uplinks::TESTS],
    },
    Suite {
        name: "nat_elsewhere",
        start: || Lab::start(Topology::nat_elsewhere()),
        tests: &[uplinks::NAT_ELSEWHERE_TESTS],
    },
    Suite {
        name: "migration",
        start: migration::start,
        tests: &[migration::TESTS],
    },
    Suite {
        name: "local_addresses",
        start: || Lab::start(local_addresses::topology()),
        tests: &[local_addresses::TESTS],
    },
    Suite {
        name: "outside",
        start: || Lab::start(outside::topology()),
        tests: &[outside::TESTS],
    },
    Suite {
        name: "paths",
        start: || paths::start(Topology::three_clouds()),
        tests: &[
            paths::blocked::TESTS,
            paths::narrow::TESTS,
            paths::stateful::TESTS,
        ],
    },
    Suite {
        name: "without_realms",
        start: || paths::start(paths::without_realms::topology()),
        tests: &[paths::without_realms::TESTS],
    },
    Suite {
        name: "upgrade",
        start: || Lab::start(upgrade::topology()),
        tests: &[upgrade::TESTS],
    },
    Suite {
        name: "upgrade_clsact",
        start: || Lab::start(upgrade::clsact_topology()),
        tests: &[upgrade::TESTS],
    },
    Suite {
        name: "uninstall",
        start: || Lab::start(Topology::one_realm()),
        tests: &[operator::UNINSTALL_TESTS],
    },
];

/// Suites that wait for minutes, which run if [`is_long`].
static LONG_SUITES: &[Suite<Lab>] = &[
    Suite {
        name: "paths_long",
        start: || paths::start(Topology::three_clouds()),
        tests: &[
            paths::blocked::LONG_TESTS,
            paths::private_route::TESTS,
            paths::narrow::LONG_TESTS,
            paths::stateful::LONG_TESTS,
        ],
    },
    Suite {
        name: "without_realms_long",
        start: || paths::start(paths::without_realms::topology()),
        tests: &[paths::replays::TESTS, paths::private_route::TESTS],
    },
];

/// Measurements, which run if the variable [`MEASURE`] is set.
static MEASUREMENTS: Suite<Lab> = Suite {
    name: "paths_measure",
    start: || paths::start(Topology::three_clouds()),
    tests: &[paths::rates::TESTS],
};
const MEASURE: &str = "IPIP_MEASURE";

fn main() -> ExitCode {
    let mut harness = Harness::new(Lab::report);
    for suite in SUITES {
        harness.suite(suite);
    }
    if is_long() {
        for suite in LONG_SUITES {
            harness.suite(suite);
        }
    }
    if env::var_os(MEASURE).is_some() {
        harness.suite(&MEASUREMENTS);
    }
    harness.lone_tests("demo", demo::TESTS);
    harness.lone_tests("leftovers", leftovers::TESTS);
    harness.run()
}
