//! The table of areas: the tests of each, when they run and how long they may take.

use super::{checks, faults, fuzz};
use crate::{build, cluster, hosts, kernels, lint, runtimes, tools};
use anyhow::Result;

/// Upper bound of the budgets of `cargo xtask test --all` and its build, in minutes.
#[cfg(test)]
const GATE_MINUTES: u32 = 60;

/// When an area runs without being named.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub enum Tier {
    /// `cargo xtask test`
    Default,
    /// `cargo xtask test --all`
    All,
    /// `cargo xtask test --nightly`
    Nightly,
}

/// A part of the tests that can be run alone.
#[derive(Debug)]
pub struct Area {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its description in `--help`.
    pub about: &'static str,
    /// When it runs without being named.
    pub tier: Tier,
    /// Minutes that it may take on two cores, with its own preparation and without the common build. The
    /// tools' cache is filled. A longer run is reported; it is no failure, because a loaded machine must
    /// not fail a change.
    pub budget: u32,
    /// The build that it needs.
    pub build: Build,
    /// Installs the programs that only this area needs; its time counts as the area's.
    pub prepare: fn() -> Result<()>,
    /// Its checks or tests.
    pub runs: Runs,
}

/// A build that precedes an area.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub enum Build {
    /// The area builds what it needs.
    Nothing,
    /// The eBPF object alone.
    Object,
    /// Every binary and every test.
    Workspace,
}

/// The checks or tests of an area.
#[derive(Debug)]
pub enum Runs {
    /// Checks of the sources.
    Lint,
    /// Test binaries on other kernels.
    Kernels(kernels::Tests),
    /// Test binaries.
    Tests(Tests),
    /// One command, which passes or fails.
    Check(fn() -> Result<()>),
}

/// Test binaries, and how they are run.
#[derive(Clone, Copy, Debug)]
pub struct Tests {
    /// Which binaries.
    pub targets: Targets,
    /// Runs only the tests whose names contain this.
    pub filter: Option<&'static str>,
    /// Variables that the tests read.
    pub variables: &'static [(&'static str, &'static str)],
    /// Whether the test `outer_ttl` of the datapath runs again, with the programs and user space built with
    /// another value of the constant.
    pub other_outer_ttl: bool,
}

/// A selection of test binaries.
#[derive(Clone, Copy, Debug)]
pub enum Targets {
    /// The unit tests of every crate, the integration tests of those crates that have no area of
    /// their own, and the examples in documentation.
    Unit,
    /// Every integration test of a package.
    Package(&'static str),
    /// One integration test.
    Named(&'static str),
}

/// Packages whose integration tests have areas of their own.
pub const WITH_AREAS: [&str; 2] = [DATAPATH, "ipip-tests"];

const DATAPATH: &str = "ipip-datapath";

const fn tests(targets: Targets) -> Tests {
    Tests {
        targets,
        filter: None,
        variables: &[],
        other_outer_ttl: false,
    }
}

const fn nothing() -> Result<()> {
    Ok(())
}

/// All areas, in the order in which they run: the fast ones first.
pub static AREAS: &[Area] = &[
    Area {
        name: "lint",
        about: "fmt, clippy, rustdoc, cargo-deny, typos, taplo and the subjects of new commits",
        tier: Tier::Default,
        budget: 2,
        build: Build::Object,
        prepare: lint::prepare,
        runs: Runs::Lint,
    },
    Area {
        name: "unit",
        about: "Each crate's own tests",
        tier: Tier::Default,
        budget: 1,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(tests(Targets::Unit)),
    },
    Area {
        name: "datapath",
        about: "The eBPF programs, packet by packet",
        tier: Tier::Default,
        budget: 1,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(Tests {
            other_outer_ttl: true,
            ..tests(Targets::Package(DATAPATH))
        }),
    },
    Area {
        name: "cni",
        about: "The CNI plugin alone, and the agent that installs it",
        tier: Tier::Default,
        budget: 1,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(tests(Targets::Named("cni"))),
    },
    Area {
        name: "e2e",
        about: "Agents, plugin and tools in simulated clouds",
        tier: Tier::Default,
        budget: 10,
        build: Build::Workspace,
        prepare: build::next_abi,
        runs: Runs::Tests(tests(Targets::Named("e2e"))),
    },
    Area {
        name: "kernels",
        about: "Loading, attaching and offloads on Debian's kernels, in emulated machines",
        tier: Tier::All,
        budget: 9,
        build: Build::Object,
        prepare: nothing,
        runs: Runs::Kernels(kernels::DATAPATH),
    },
    Area {
        name: "api",
        about: "The agent, its manifests and our configurations against a real API server and kubeadm",
        tier: Tier::All,
        budget: 7,
        build: Build::Workspace,
        prepare: api,
        runs: Runs::Tests(tests(Targets::Named("api"))),
    },
    Area {
        name: "runtimes",
        about: "The CNI plugin under containerd, podman and cnitool",
        tier: Tier::All,
        budget: 1,
        build: Build::Workspace,
        prepare: runtimes::prepare,
        runs: Runs::Tests(tests(Targets::Named("runtimes"))),
    },
    Area {
        name: "kubernetes",
        about: "A real Kubernetes cluster in simulated clouds",
        tier: Tier::All,
        budget: 12,
        build: Build::Workspace,
        prepare: cluster::prepare,
        runs: Runs::Tests(tests(Targets::Named("kubernetes"))),
    },
    Area {
        name: "hosts",
        about: "Virtual machines with Debian 12, AppArmor and kubeadm join, on Linux 6.1",
        tier: Tier::All,
        budget: 6,
        build: Build::Workspace,
        prepare: hosts::prepare,
        runs: Runs::Tests(tests(Targets::Named("hosts"))),
    },
    Area {
        name: "fuzz",
        about: "Fuzz targets for everything in user space that parses bytes of others, ten seconds each",
        tier: Tier::All,
        budget: 5,
        build: Build::Object,
        prepare: fuzz::prepare,
        runs: Runs::Check(|| fuzz::check(10)),
    },
    Area {
        name: "kernels-packets",
        about: "Every packet test on Debian's kernels, in emulated machines",
        tier: Tier::Nightly,
        budget: 40,
        build: Build::Object,
        prepare: nothing,
        runs: Runs::Kernels(kernels::PACKETS),
    },
    Area {
        name: "hosts-all",
        about: "The area hosts on Linux 6.1 and 6.12, and kubeadm init on a machine",
        tier: Tier::Nightly,
        budget: 45,
        build: Build::Workspace,
        prepare: hosts::prepare_all,
        runs: Runs::Tests(Tests {
            variables: &[("IPIP_HOSTS", "all")],
            ..tests(Targets::Named("hosts"))
        }),
    },
    Area {
        name: "e2e-segmenting",
        about: "The area e2e on uplinks that segment packets, as cards without offloads do",
        tier: Tier::Nightly,
        budget: 6,
        build: Build::Workspace,
        prepare: build::next_abi,
        runs: Runs::Tests(Tests {
            variables: &[("IPIP_LAB_SEGMENTING", "1")],
            ..tests(Targets::Named("e2e"))
        }),
    },
    Area {
        name: "paths",
        about: "Paths that fail, return, lose packets or become narrow: what takes minutes",
        tier: Tier::Nightly,
        budget: 12,
        build: Build::Workspace,
        prepare: build::next_abi,
        runs: Runs::Tests(Tests {
            filter: Some("_long::"),
            variables: &[("IPIP_LONG", "1")],
            ..tests(Targets::Named("e2e"))
        }),
    },
    Area {
        name: "bare",
        about: "Kubernetes without this project in the same clouds, which shows that they are like real ones",
        tier: Tier::Nightly,
        budget: 4,
        build: Build::Workspace,
        prepare: cluster::prepare,
        runs: Runs::Tests(Tests {
            filter: Some("bare::"),
            variables: &[("IPIP_LONG", "1")],
            ..tests(Targets::Named("kubernetes"))
        }),
    },
    Area {
        name: "migration",
        about: "A Kubernetes cluster that migrates from flannel node by node",
        tier: Tier::Nightly,
        budget: 25,
        build: Build::Workspace,
        prepare: migration,
        runs: Runs::Tests(tests(Targets::Named("migration"))),
    },
    Area {
        name: "hostile",
        about: "A million random packets; each verdict is compared with a model",
        tier: Tier::Nightly,
        budget: 15,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(Tests {
            variables: &[("IPIP_HOSTILE_PACKETS", "1000000")],
            ..tests(Targets::Named("hostile"))
        }),
    },
    Area {
        name: "hostile-kernels",
        about: "100,000 random packets on each of Debian's kernels, in emulated machines",
        tier: Tier::Nightly,
        budget: 15,
        build: Build::Object,
        prepare: nothing,
        runs: Runs::Kernels(kernels::HOSTILE),
    },
    Area {
        name: "faults",
        about: "Faults that are put into the programs; the area hostile must find each of them",
        tier: Tier::Nightly,
        budget: 30,
        build: Build::Object,
        prepare: nothing,
        runs: Runs::Check(faults::check),
    },
    Area {
        name: "fuzz-long",
        about: "The area fuzz, a minute for each target",
        tier: Tier::Nightly,
        budget: 20,
        build: Build::Object,
        prepare: fuzz::prepare,
        runs: Runs::Check(|| fuzz::check(60)),
    },
    Area {
        name: "leak",
        about: "10,000 pods that are added, killed and deleted",
        tier: Tier::Nightly,
        budget: 20,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(Tests {
            filter: Some("leak::"),
            variables: &[("IPIP_LEAK_ROUNDS", "10000")],
            ..tests(Targets::Named("cni"))
        }),
    },
    Area {
        name: "sandboxes",
        about: "500 sandboxes under each container runtime",
        tier: Tier::Nightly,
        budget: 30,
        build: Build::Workspace,
        prepare: runtimes::prepare,
        runs: Runs::Tests(Tests {
            variables: &[("IPIP_SANDBOXES", "500")],
            ..tests(Targets::Named("runtimes"))
        }),
    },
    Area {
        name: "handover",
        about: "The datapath changes its ABI version and is killed 50 times meanwhile, with each attach mode",
        tier: Tier::Nightly,
        budget: 5,
        build: Build::Workspace,
        prepare: nothing,
        runs: Runs::Tests(Tests {
            filter: Some("killed"),
            variables: &[("IPIP_HANDOVER_KILLS", "50")],
            ..tests(Targets::Named("handover"))
        }),
    },
    Area {
        name: "upgrade",
        about: "Agents change their ABI version and are killed 50 times meanwhile",
        tier: Tier::Nightly,
        budget: 10,
        build: Build::Workspace,
        prepare: build::next_abi,
        runs: Runs::Tests(Tests {
            filter: Some("upgrade"),
            variables: &[("IPIP_HANDOVER_KILLS", "50")],
            ..tests(Targets::Named("e2e"))
        }),
    },
    Area {
        name: "images",
        about: "The container image for both processors",
        tier: Tier::Nightly,
        budget: 20,
        build: Build::Nothing,
        prepare: nothing,
        runs: Runs::Check(checks::images),
    },
    Area {
        name: "demos",
        about: "Both demos; a failed row fails the area",
        tier: Tier::Nightly,
        budget: 15,
        build: Build::Nothing,
        prepare: nothing,
        runs: Runs::Check(checks::demos),
    },
    Area {
        name: "bench",
        about: "Runs the benchmark, and that with many peers, to their ends, without comparing their figures",
        tier: Tier::Nightly,
        budget: 20,
        build: Build::Nothing,
        prepare: nothing,
        runs: Runs::Check(checks::bench),
    },
];

fn api() -> Result<()> {
    tools::prepare(&["etcd", "kube-apiserver", "kubectl", "kubeadm", "helm"]).map(drop)
}

fn migration() -> Result<()> {
    cluster::prepare()?;
    tools::prepare(&["flannel"]).map(drop)
}

impl Area {
    /// The area of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        AREAS.iter().find(|area| area.name == name)
    }

    /// Whether `cargo xtask test --all` runs it.
    pub fn is_in_gate(&self) -> bool {
        self.tier <= Tier::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budgets_of_the_gate_and_the_common_build_sum_to_at_most_an_hour() {
        let areas = AREAS.iter().filter(|area| area.is_in_gate());
        let sum: u32 = areas.map(|area| area.budget).sum();
        assert!(sum + super::super::BUILD_BUDGET <= GATE_MINUTES, "{sum}");
    }

    #[test]
    fn each_area_has_its_own_name() {
        for area in AREAS {
            let same = AREAS.iter().filter(|other| other.name == area.name);
            assert_eq!(same.count(), 1, "{}", area.name);
        }
    }

    #[test]
    fn each_area_that_runs_e2e_builds_the_next_version_for_its_tests_of_upgrades() {
        for area in AREAS {
            if let Runs::Tests(Tests {
                targets: Targets::Named("e2e"),
                ..
            }) = area.runs
            {
                let next_abi: fn() -> Result<()> = build::next_abi;
                assert!(
                    std::ptr::fn_addr_eq(area.prepare, next_abi),
                    "{}",
                    area.name
                );
            }
        }
    }

    #[test]
    fn contributing_lists_each_area_with_its_tier_and_budget() {
        let text = include_str!("../../../CONTRIBUTING.md");
        for area in AREAS {
            let tier = match area.tier {
                Tier::Default => "default",
                Tier::All => "`--all`",
                Tier::Nightly => "`--nightly`",
            };
            let row = format!("| `{}` | {tier} | {} |", area.name, area.budget);
            assert!(text.contains(&row), "CONTRIBUTING.md lacks `{row}`");
        }
    }
}
