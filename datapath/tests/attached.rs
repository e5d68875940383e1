//! Attaching on the real kernel, by TCX if the kernel has it, and by clsact. Needs root and a BPF file
//! system.

mod hooks;
mod support;

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use hooks::attached_to;
use ipip_abi::Program;
use ipip_datapath::{AttachMode, Error, LoadOutcome, Programs, Promotion, load, remove};
use ipip_netlink::{Netlink, Veth};
use ipip_testkit::{scratch::ScratchPins, test_ns::TestNs, wait::within};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use support::modes;

/// A namespace with the veth `left`/`right.7`, and pins.
struct Scratch {
    pins: ScratchPins,
    netns: TestNs,
}

impl Scratch {
    fn new() -> Self {
        let netns = TestNs::new();
        add_veth(&mut Netlink::open_in(&netns).unwrap());
        let pins = ScratchPins::new();
        Self { pins, netns }
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f).unwrap()
    }

    fn programs(&self, mode: AttachMode) -> Programs {
        Programs::open(&self.pins, mode).unwrap()
    }

    /// The programs that the kernel runs on packets that `left` receives.
    fn on_left(&self, mode: AttachMode) -> Vec<u32> {
        self.run(|| attached_to("left", mode, TcAttachType::Ingress))
    }

    /// Replaces the pinned program `from_uplink` by another one, as if an older build had pinned it. Returns its path.
    fn pin_another_program(&self) -> PathBuf {
        let path = self.pins.program(Program::FromUplink);
        fs::remove_file(&path).unwrap();
        pin_again(&self.pins.program(Program::ToPod), &path);
        path
    }
}

fn add_veth(link: &mut Netlink) {
    let veth = Veth {
        name: "left",
        peer_name: "right.7",
        ..Veth::default()
    };
    link.add_veth(&veth).unwrap();
}

/// Pins the program of the pin `from` a second time, at `to`.
fn pin_again(from: &Path, to: &Path) {
    SchedClassifier::from_pin(from).unwrap().pin(to).unwrap();
}

/// Deletes the veth, as the removal of a pod does.
fn delete_left() -> Netlink {
    let mut link = Netlink::open().unwrap();
    let index = link.link("left").unwrap().unwrap().index;
    link.delete_link(index).unwrap();
    link
}

#[test]
fn each_program_is_attached_once_even_if_it_is_attached_again() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        let attached = scratch.run(|| {
            for _ in 0..2 {
                let mut programs = scratch.programs(mode);
                programs.attach_pod("left").unwrap();
                programs.attach_host("right.7").unwrap();
                programs.attach_uplink("right.7").unwrap();
            }
            scratch.programs(mode).attached().unwrap()
        });
        let listed: Vec<_> = attached
            .iter()
            .map(|one| (one.ifname.as_str(), one.program, one.mode, one.defunct))
            .collect();
        assert_eq!(
            listed,
            [
                ("left", Program::FromPod, mode, false),
                ("left", Program::ToPod, mode, false),
                ("right.7", Program::FromHost, mode, false),
                ("right.7", Program::FromUplink, mode, false),
            ]
        );
    }
}

#[test]
fn detaching_leaves_nothing_and_is_no_error_twice_or_without_the_interface() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        scratch.run(|| {
            let mut programs = scratch.programs(mode);
            programs.attach_pod("left").unwrap();
            programs.detach("left").unwrap();
            programs.detach("left").unwrap();
            assert_eq!(programs.attached().unwrap(), []);
            programs.attach_pod("left").unwrap();
            delete_left();
            assert!(programs.attached().unwrap().iter().all(|one| one.defunct));
            programs.detach("left").unwrap();
            assert_eq!(programs.attached().unwrap(), []);
        });
        assert_eq!(
            scratch.run(|| fs::read_dir(scratch.pins.links()).unwrap().count()),
            0
        );
    }
}

#[test]
fn an_interface_that_came_back_under_its_name_gets_its_programs() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        scratch.run(|| {
            let mut programs = scratch.programs(mode);
            programs.attach_uplink("left").unwrap();
            add_veth(&mut delete_left());
            programs.attach_uplink("left").unwrap();
        });
        assert_eq!(scratch.on_left(mode).len(), 1, "{mode}");
    }
}

#[test]
fn a_program_that_differs_is_replaced_where_it_is_attached() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        let path = scratch.pin_another_program();
        scratch.run(|| scratch.programs(mode).attach_uplink("left").unwrap());
        let old = scratch.on_left(mode);

        let outcome = scratch.run(|| load(&scratch.pins, mode)).unwrap();
        assert_eq!(outcome, LoadOutcome::ProgramsReplaced, "{mode}");
        let new = scratch.on_left(mode);
        assert_eq!(new, [ProgramInfo::from_pin(&path).unwrap().id()], "{mode}");
        assert_ne!(new, old, "{mode}");
        let again = scratch.run(|| load(&scratch.pins, mode)).unwrap();
        assert_eq!(again, LoadOutcome::Adopted, "{mode}");
    }
}

#[test]
fn an_upgrade_that_died_between_pinning_and_replacing_is_finished_at_the_next_start() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        let right = scratch.pins.programs().join("right");
        pin_again(&scratch.pins.program(Program::FromUplink), &right);
        let path = scratch.pin_another_program();
        scratch.run(|| scratch.programs(mode).attach_uplink("left").unwrap());
        // The new program is pinned, the old one still attached.
        fs::rename(&right, &path).unwrap();
        let outcome = scratch.run(|| load(&scratch.pins, mode)).unwrap();
        assert_eq!(outcome, LoadOutcome::ProgramsReplaced, "{mode}");
        let current = ProgramInfo::from_pin(&path).unwrap().id();
        assert_eq!(scratch.on_left(mode), [current], "{mode}");
        let again = scratch.run(|| load(&scratch.pins, mode)).unwrap();
        assert_eq!(again, LoadOutcome::Adopted, "{mode}");
    }
}

#[test]
fn a_program_that_is_attached_both_ways_is_replaced_both_ways_and_promoted_by_the_new_one() {
    let [AttachMode::Tcx, AttachMode::Clsact] = modes()[..] else {
        return;
    };
    let scratch = Scratch::new();
    load(&scratch.pins, AttachMode::Auto).unwrap();
    let path = scratch.pin_another_program();
    for mode in modes() {
        scratch.run(|| scratch.programs(mode).attach_uplink("left").unwrap());
    }
    let outcome = scratch.run(|| load(&scratch.pins, AttachMode::Auto));
    assert_eq!(outcome.unwrap(), LoadOutcome::ProgramsReplaced);
    let new = [ProgramInfo::from_pin(&path).unwrap().id()];
    for mode in modes() {
        assert_eq!(scratch.on_left(mode), new, "{mode}");
    }
    let mut programs = scratch.programs(AttachMode::Auto);
    let promotable = || scratch.run(|| scratch.programs(AttachMode::Auto).promotable());
    assert_eq!(promotable().unwrap(), ["left"]);
    let promoted = scratch.run(|| programs.promote("left"));
    assert_eq!(promoted.unwrap(), Promotion::Done);
    assert_eq!(scratch.on_left(AttachMode::Tcx), new);
    assert!(scratch.on_left(AttachMode::Clsact).is_empty());
    assert!(promotable().unwrap().is_empty());
}

#[test]
fn removal_detaches_the_programs() {
    for mode in modes() {
        let scratch = Scratch::new();
        load(&scratch.pins, mode).unwrap();
        scratch.run(|| scratch.programs(mode).attach_pod("left").unwrap());
        assert_eq!(scratch.on_left(mode).len(), 1, "{mode}");
        scratch.run(|| remove(&scratch.pins)).unwrap();
        // The kernel ends a link only after an RCU grace period.
        let gone = || scratch.on_left(mode).is_empty();
        let what = format!("{mode}: no program is attached");
        within(Duration::from_secs(1), &what, || Ok(gone())).unwrap();
    }
}

#[test]
fn tcx_on_a_kernel_without_it_is_rejected_before_anything_is_loaded() {
    let scratch = Scratch::new();
    let loaded = load(&scratch.pins, AttachMode::Tcx);
    if modes().contains(&AttachMode::Tcx) {
        assert_eq!(loaded.unwrap(), LoadOutcome::Created);
    } else {
        assert!(matches!(loaded, Err(Error::NoTcx(_))), "{loaded:?}");
        assert!(!scratch.pins.root().exists());
    }
}
