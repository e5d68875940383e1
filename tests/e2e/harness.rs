//! Tests that share a running lab, one lab at a time.

use ipip_lab::{Lab, Topology};
use libtest_mimic::{Failed, Trial};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

/// A test and its name, which is the sentence it proves.
#[derive(Clone, Copy)]
pub struct Test {
    /// Module and function.
    pub name: &'static str,
    /// The test. It leaves the lab as it found it.
    pub run: fn(&Lab) -> anyhow::Result<()>,
}

/// Tests that share one lab.
pub struct Suite {
    /// Its name.
    pub name: &'static str,
    /// What the lab consists of.
    pub topology: fn() -> Topology,
    /// The tests.
    pub tests: &'static [&'static [Test]],
}

/// Lists functions as [`Test`]s.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        &[$(crate::harness::Test { name: stringify!($test), run: $test }),*]
    };
}
pub(crate) use tests;

/// The lab that runs now, and the suite that it belongs to.
#[derive(Clone, Default)]
pub struct Current {
    running: Arc<Mutex<Option<(&'static str, Lab)>>>,
}

impl Current {
    /// Removes the lab that runs now.
    pub fn end(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The trials of `suite`.
    pub fn trials(&self, suite: &'static Suite) -> Vec<Trial> {
        let tests = suite.tests.iter().copied().flatten().copied();
        tests
            .map(|test| {
                let current = self.clone();
                Trial::test(format!("{}::{}", suite.name, test.name), move || {
                    current.run(suite, test)
                })
            })
            .collect()
    }

    fn run(&self, suite: &'static Suite, test: Test) -> Result<(), Failed> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_none_or(|(name, _)| *name != suite.name) {
            // The old one goes first: two would double the memory.
            *running = None;
            let lab = Lab::start((suite.topology)())
                .map_err(|error| format!("the lab does not start: {error:#}"))?;
            *running = Some((suite.name, lab));
        }
        let Some((_, lab)) = running.as_ref() else {
            return Err("no lab".into());
        };
        let failure = match catch_unwind(AssertUnwindSafe(|| (test.run)(lab))) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("{error:?}"),
            Err(panic) => panic_message(&*panic),
        };
        let report = lab.report();
        // Whatever state it is in, the next test shall not see it.
        *running = None;
        Err(format!("{failure}\n{report}").into())
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()))
        .unwrap_or_else(|| "the test panicked".into())
}
